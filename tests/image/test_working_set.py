"""A working set is a small file that anything may have happened to: it is read whole, or not."""

import contextlib
import dataclasses
import json
import random
import struct
from pathlib import Path

import pytest
from bitarray import bitarray
from mapsave.image import image, working_set
from mapsave.image.working_set import WorkingSet

from tests.image import build

PAGE = 4096


def known(**bits: str) -> WorkingSet:
    blocks = {name: bitarray(text, endian="little") for name, text in bits.items()}
    return WorkingSet("an uuid", "learn", 1.5, PAGE, blocks)


TWO = known(ram="0111000001", rom="1")


def changed(raw: bytes, **fields: object) -> bytes:
    """Return a file whose description says something else; its digest fits."""
    description, blocks = _described(raw)
    body = json.dumps({**description, **fields}).encode()
    return _sealed(body, blocks)


def _described(raw: bytes) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack_from(">I", raw, 12)
    return json.loads(raw[48 : 48 + length]), raw[48 + length :]


def _sealed(body: bytes, rest: bytes, *, version: int = 1) -> bytes:
    import hashlib

    digest = hashlib.sha256(body + rest).digest()
    return struct.pack(">8sII32s", b"MAPSAVEW", version, len(body), digest) + body + rest


def test_it_is_read_as_it_was_written() -> None:
    assert working_set.decode(TWO.encoded()) == TWO
    assert TWO.total_bytes == 5 * PAGE


def test_the_file_is_as_described() -> None:
    """By hand: magic, version, lengths, digest, JSON, bitmaps with the lowest bit first."""
    raw = TWO.encoded()
    description, rest = _described(raw)
    assert raw == _sealed(json.dumps(description, separators=(",", ":")).encode(), rest)
    assert rest == bytes([0b00001110, 0b10, 0b1])
    assert description["blocks"] == [{"name": "ram", "pages": 10}, {"name": "rom", "pages": 1}]


_BLOCK = {"name": "ram", "pages": 10}
_WRONG = {
    "magic": (lambda raw: b"X" + raw[1:], "not a working set"),
    "version": (lambda raw: _sealed(b"{}", b"", version=2), "version 2"),
    "digest": (lambda raw: raw[:-1] + b"\0", "damaged"),
    "short": (lambda raw: raw[:40], "length"),
    "long": (lambda raw: raw.ljust(working_set.MOST_BYTES + 1), "length"),
    "page": (lambda raw: changed(raw, page_bytes=0), "no sense"),
    "negative": (lambda raw: changed(raw, blocks=[{**_BLOCK, "pages": -8}]), "no sense"),
    "more": (lambda raw: changed(raw, blocks=[_BLOCK] * 2), "bitmaps"),
    "fewer": (lambda raw: changed(raw, blocks=[_BLOCK]), "bitmaps"),
    "no-json": (lambda raw: _sealed(b"{", b""), "truncated"),
    "type": (lambda raw: changed(raw, recorded="now"), "recorded"),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_what_is_wrong_is_said(wrong: str) -> None:
    change, words = _WRONG[wrong]
    with pytest.raises(ValueError, match=words):
        working_set.decode(change(TWO.encoded()))


def test_what_was_damaged_by_chance_is_refused_or_whole() -> None:
    generator = random.Random(14)
    raw = TWO.encoded()
    description, rest = _described(raw)
    text = json.dumps(description).encode()
    for _ in range(2000):
        body = bytearray(text)
        for _ in range(generator.randrange(1, 4)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        with contextlib.suppress(ValueError):
            found = working_set.decode(_sealed(bytes(body), rest))
            assert sum(-(-len(bits) // 8) for bits in found.blocks.values()) == len(rest)
        cut = generator.randrange(len(raw))
        with pytest.raises(ValueError):
            working_set.decode(raw[:cut])


def test_more_ram_than_a_file_has_room_for() -> None:
    large = dataclasses.replace(TWO, blocks={"ram": bitarray(working_set.MOST_BYTES * 8)})
    with pytest.raises(ValueError, match="too much RAM"):
        large.encoded()


def test_pieces_of_a_file_are_pages_of_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "it"
    blocks = (build.Block("a", 8 * PAGE, used=(1, 2, 3)), build.Block("b", 4 * PAGE, used=(0,)))
    build.Image(blocks=list(blocks)).built().write(path)
    with image.opened(path) as opened:
        stream = opened.validate().stream
        first, second = stream.blocks
        pieces = [
            (first.pages_offset - PAGE, bitarray("10110", endian="little")),  # from before it
            (first.pages_offset + 7 * PAGE, bitarray("11", endian="little")),  # and beyond it
            (second.pages_offset + PAGE, bitarray("1", endian="little")),
            (second.pages_offset + PAGE, bitarray("0", endian="little")),  # mapped twice
        ]
        found = working_set.collected(stream.blocks, pieces, PAGE)
        assert {name: bits.to01() for name, bits in found.items()} == {
            "a": "01100001",
            "b": "0100",
        }
        stored = WorkingSet("", "save", 0.0, PAGE, found).stored(opened.fd, stream)
        assert {block.name: bits.to01() for block, bits in stored} == {
            "a": "01100000",
            "b": "0000",
        }
        other = known(a="1" * 9, c="1")  # of another guest
        assert list(other.stored(opened.fd, stream)) == []


def test_what_was_known_before_is_kept() -> None:
    joined = known(ram="0100000000").joined(TWO)
    assert {name: bits.to01() for name, bits in joined.blocks.items()} == {
        "ram": "0111000001",
        "rom": "1",
    }
    assert known().joined(TWO).blocks == TWO.blocks
    assert known(ram="01").joined(TWO).blocks["ram"].to01() == "01"
    assert known(ram="01").joined(None) == known(ram="01")
