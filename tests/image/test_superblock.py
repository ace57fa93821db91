"""The superblock: its slots, its checks, and what a torn write leaves."""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.image import superblock
from mapsave.image.superblock import State, Superblock

from tests.image import build
from tests.kit import files

SIZE = 1 << 18
NEW = Superblock(State.PARTIAL, 0, build.M, uuid.UUID(int=7))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """An empty file."""
    with files.opened(tmp_path / "image", os.O_RDWR | os.O_CREAT) as descriptor:
        yield descriptor


def slots(fd: int, *pairs: tuple[int, dict[str, Any]]) -> None:
    """Write slots, each at the place of its number."""
    os.ftruncate(fd, SIZE)
    for place, fields in pairs:
        os.pwrite(fd, build.slot(**{"file_length": SIZE, **fields}), place * build.SLOT)


def test_layout_is_that_of_the_description(fd: int) -> None:
    metadata = b'{"a": 1}'
    fields = {
        "state": build.RESTORED,
        "sequence": 6,
        "stream_offset": 1 << 17,
        "metadata": metadata,
        "metadata_offset": 20000,
        "digest": (200_000, 5000),
        "optional": 0b101,
    }
    slots(fd, (0, fields))
    os.pwrite(fd, metadata, 20000)
    found = superblock.read(fd)
    assert found == Superblock(
        state=State.RESTORED,
        sequence=6,
        stream_offset=1 << 17,
        uuid=uuid.UUID(bytes=build.UUID),
        file_length=SIZE,
        metadata_offset=20000,
        metadata_length=8,
        metadata_sha256=found.metadata_sha256,
        digest_offset=200_000,
        digest_length=5000,
        optional=0b101,
    )
    assert found.pack() == build.slot(**{"file_length": SIZE, **fields})
    assert superblock.read_metadata(fd, found) == {"a": 1}


@pytest.mark.parametrize(
    ("pairs", "sequence"),
    [
        (((0, {"sequence": 2}),), 2),
        (((1, {"sequence": 1}),), 1),
        (((0, {"sequence": 2}), (1, {"sequence": 1})), 2),
        (((0, {"sequence": 2}), (1, {"sequence": 3})), 3),
        (((0, {"sequence": 1 << 40}), (1, {"sequence": (1 << 40) - 1})), 1 << 40),
        # One in the other's place would be overwritten by its own update: it does not count.
        (((0, {"sequence": 9}), (1, {"sequence": 3})), 3),
        (((0, {"sequence": 2}), (1, {"sequence": 4})), 2),
    ],
)
def test_slot_of_the_highest_sequence_counts(
    fd: int, pairs: tuple[tuple[int, dict[str, Any]], ...], sequence: int
) -> None:
    slots(fd, *pairs)
    assert superblock.read(fd).sequence == sequence


@pytest.mark.parametrize("at", [0, 7, 8, 12, 50, 135, 136, 2000, 4063, 4064, 4095])
def test_a_changed_bit_makes_the_slot_invalid(fd: int, at: int) -> None:
    slots(fd, (0, {"sequence": 2}), (1, {"sequence": 3}))
    byte = os.pread(fd, 1, build.SLOT + at)[0]
    os.pwrite(fd, bytes([byte ^ 0x10]), build.SLOT + at)
    assert superblock.read(fd).sequence == 2
    os.pwrite(fd, bytes(build.SLOT), 0)
    with pytest.raises(errors.NotAnImage if at < 8 else errors.InvalidImage):
        superblock.read(fd)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"must": 1}, errors.UnsupportedImage, "features 0x1"),
        ({"must": 1 << 63}, errors.UnsupportedImage, "features 0x8000000000000000"),
        ({"version": 2}, errors.UnsupportedImage, "format version 2"),
        ({"version": 0xFFFFFFFF}, errors.UnsupportedImage, "format version"),
        ({"state": 0}, errors.InvalidImage, "unknown state 0"),
        ({"state": 4}, errors.InvalidImage, "unknown state 4"),
        ({"stream_offset": 0}, errors.InvalidImage, "stream offset 0"),
        ({"stream_offset": (64 << 10) - 4096}, errors.InvalidImage, "stream offset"),
        ({"stream_offset": (64 << 10) + 512}, errors.InvalidImage, "stream offset"),
        ({"stream_offset": (1 << 30) + 4096}, errors.InvalidImage, "stream offset"),
        ({"stream_offset": 1 << 63}, errors.InvalidImage, "stream offset"),
        ({"metadata_offset": 8191}, errors.InvalidImage, "metadata at 8191"),
        ({"metadata_offset": 0}, errors.InvalidImage, "metadata at 0"),
        ({"metadata_offset": build.M - 1}, errors.InvalidImage, "metadata at 65535"),
        ({"metadata_length": build.M - 8191}, errors.InvalidImage, "lies outside"),
        ({"metadata_length": (1 << 64) - 1}, errors.InvalidImage, "metadata of"),
        (
            {"stream_offset": 1 << 26, "metadata_length": (1 << 20) + 1},
            errors.InvalidImage,
            "metadata of 1048577",
        ),
        ({"digest": (0, 1)}, errors.InvalidImage, "digest at 0"),
        ({"digest": (SIZE, 1)}, errors.InvalidImage, "digest at"),
        ({"digest": (1 << 63, 1 << 63)}, errors.InvalidImage, "digest at"),
        ({"sequence": (1 << 64) - 2}, errors.InvalidImage, "sequence number"),
        ({"file_length": SIZE + 1}, errors.TruncatedImage, "superblock says"),
        ({"file_length": (1 << 64) - 1}, errors.TruncatedImage, "superblock says"),
        ({"file_length": SIZE - 1}, errors.InvalidImage, "1 more than"),
    ],
)
def test_wrong_field(fd: int, fields: dict[str, Any], error: type[Exception], words: str) -> None:
    slots(fd, (0, fields))
    with pytest.raises(errors.InvalidImage, match=words) as caught:
        superblock.read(fd)
    assert type(caught.value) is error


def test_length_of_a_partial_image_is_not_known(fd: int) -> None:
    slots(fd, (0, {"state": build.PARTIAL, "file_length": 0}))
    assert superblock.read(fd).state is State.PARTIAL


@pytest.mark.parametrize("content", [b"", b"MAPSAVE", b"LibvirtQemudSave" * 600, bytes(10000)])
def test_other_files_are_no_images(fd: int, content: bytes) -> None:
    os.pwrite(fd, content, 0)
    with pytest.raises(errors.NotAnImage):
        superblock.read(fd)
    assert superblock.is_blank(fd) == (content in (b"", bytes(10000)))


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b"1", b'"x"', b"\xff\xfe\xfd", b"[" * 9000, b'{"a": nul}']
)
def test_metadata_that_is_no_object(fd: int, metadata: bytes) -> None:
    slots(fd, (0, {"metadata": metadata}))
    os.pwrite(fd, metadata, 2 * build.SLOT)
    with pytest.raises(errors.InvalidImage, match="metadata is not"):
        superblock.read_metadata(fd, superblock.read(fd))


def test_damaged_metadata(fd: int) -> None:
    slots(fd, (0, {"metadata": b'{"a": 1}'}))
    os.pwrite(fd, b'{"a": 2}', 2 * build.SLOT)
    with pytest.raises(errors.InvalidImage, match="checksum"):
        superblock.read_metadata(fd, superblock.read(fd))


def test_metadata_areas_alternate_and_keep_within_the_header(fd: int) -> None:
    block = NEW
    areas = []
    for number in range(5):
        before = block
        block = superblock.write(fd, block, {"number": number, "pad": "x" * 9000})
        old = range(before.metadata_offset, before.metadata_offset + before.metadata_length)
        assert block.metadata_offset not in old
        assert block.metadata_offset + block.metadata_length - 1 not in old
        assert superblock.read_metadata(fd, superblock.read(fd))["number"] == number
        areas.append(block.metadata_offset)
    assert areas == [areas[0], areas[1]] * 2 + [areas[0]]
    assert os.fstat(fd).st_size <= build.M


def test_update_without_metadata_keeps_it(fd: int) -> None:
    first = superblock.write(fd, NEW, {"a": 1})
    second = superblock.write(fd, dataclasses.replace(first, optional=4))
    assert superblock.read(fd) == second
    assert second.metadata_offset == first.metadata_offset
    assert superblock.read_metadata(fd, second) == {"a": 1}


def test_metadata_that_does_not_fit_leaves_the_file_as_it_was(fd: int) -> None:
    superblock.write(fd, NEW, {})
    before = os.pread(fd, SIZE, 0)
    room = (build.M - 2 * build.SLOT) // 2
    with pytest.raises(ValueError, match=f"{room} reserved"):
        superblock.write(fd, NEW, {"a": "x" * room})
    wide = dataclasses.replace(NEW, stream_offset=1 << 26)
    with pytest.raises(ValueError, match="1048576 reserved"):
        superblock.write(fd, wide, {"a": "x" * (1 << 20)})
    assert os.pread(fd, SIZE, 0) == before


def test_metadata_of_exactly_the_room_fits(fd: int) -> None:
    room = (build.M - 2 * build.SLOT) // 2
    pad = "x" * (room - len(json.dumps({"a": ""})))
    block = superblock.write(fd, superblock.write(fd, NEW, {"a": pad}), {"a": pad})
    assert superblock.read_metadata(fd, superblock.read(fd)) == {"a": pad}
    assert block.metadata_offset + block.metadata_length == build.M == os.fstat(fd).st_size


def test_names_that_are_not_utf8_survive(fd: int) -> None:
    name = os.fsdecode(b"caf\xe9 \xff\n\"'")
    superblock.write(fd, NEW, {"guest": {"name": name}})
    assert superblock.read_metadata(fd, superblock.read(fd)) == {"guest": {"name": name}}


@pytest.mark.parametrize("offset", [64 << 10, 68 << 10, 1 << 20, 1 << 30])
def test_stream_offsets_allowed(offset: int) -> None:
    superblock.check_stream_offset(offset)


@pytest.mark.parametrize("offset", [-4096, 0, 60 << 10, (64 << 10) + 1, 1000000, (1 << 30) + 4096])
def test_stream_offsets_refused(offset: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4 KiB"):
        superblock.check_stream_offset(offset)


Write = tuple[int, bytes]


def torn_files(path: Path, update: Callable[[int], object], monkeypatch: Any) -> Iterator[None]:
    """Carry ``update`` out but for its end: cut at each sector of each of its writes.

    Yields with the file as a crash would leave it.
    """
    writes: list[Write] = []
    real = os.pwrite

    def noted(fd: int, data: bytes, offset: int) -> int:
        writes.append((offset, bytes(data)))
        return real(fd, data, offset)

    before = path.with_suffix(".before")
    shutil.copy(path, before)
    with monkeypatch.context() as patch, path.open("r+b") as file:
        patch.setattr(os, "pwrite", noted)
        update(file.fileno())
    for number, (offset, data) in enumerate(writes):
        for cut in range(0, len(data), 512):
            shutil.copy(before, path)
            with path.open("r+b") as file:
                for done in writes[:number]:
                    real(file.fileno(), done[1], done[0])
                real(file.fileno(), data[:cut], offset)
                yield


def test_torn_write_leaves_the_previous_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.touch()
    state = NEW
    with path.open("r+b") as file:
        state = superblock.write(file.fileno(), state, {"number": 0, "pad": "y" * 5000})
        file.truncate(SIZE)
    # Twice round, so that both slots and both areas are the old ones once.
    for number in range(1, 5):
        following = dataclasses.replace(state, optional=number)

        def update(fd: int, following: Superblock = following, number: int = number) -> None:
            superblock.write(fd, following, {"number": number, "pad": "z" * 6000})

        torn = 0
        for _ in torn_files(path, update, monkeypatch):
            with path.open("rb") as file:
                assert superblock.read(file.fileno()) == state
                found = superblock.read_metadata(file.fileno(), state)
            assert found["number"] == number - 1
            torn += 1
        assert torn == 8 + -(-(6000 + 26) // 512)
        with path.open("r+b") as file:
            update(file.fileno())
            state = superblock.read(file.fileno())
            assert state.optional == number
