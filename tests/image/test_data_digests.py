"""Digests of an image's data: each bit that turns is found, and what is as it was is not."""

import dataclasses
import itertools
import os
import random
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import data_digests, holes, image, piece_reader
from mapsave.image.libvirt_header import NewLibvirtHeader
from mapsave.image.superblock import State
from mapsave.operations import digesting, inspect

from tests.image import build
from tests.image.build_libvirt import COOKIE, XML
from tests.image.filled import BLOCKS, fill
from tests.kit import files

MIB = build.MIB
FLIPS = 500  # of each format
NEW = NewLibvirtHeader(XML.decode(), COOKIE.decode(), was_running=True)
FORMATS = (None, NEW)
IDS = ("native", "libvirt")


def ignore(_: int) -> None:
    pass


@contextmanager
def made(
    held: int, name: str, header: NewLibvirtHeader | None, *, before: bool = True
) -> Iterator[image.Partial]:
    """Make an image, and yield it as its save does, just before it is committed."""
    with image.creating(
        held,
        name,
        {},
        stream_offset=build.M,
        libvirt=header,
        digest_room=data_digests.room(8 * MIB),
    ) as partial:
        fill(partial, zlib.crc32(name.encode()))
        if before:
            partial.take_digests(ignore)
        yield partial


def committed(held: int, name: str, header: NewLibvirtHeader | None, **how: bool) -> None:
    with made(held, name, header, **how) as partial:
        known = {"structure_digest": partial.validate().structure_digest}
        partial.commit(known, replace=False)


@pytest.fixture(params=FORMATS, ids=IDS)
def path(request: pytest.FixtureRequest, tmp_path: Path, held: int) -> Path:
    """An image with digests of its data, in each format."""
    committed(held, "a", request.param)
    return tmp_path / "a"


@pytest.fixture(params=FORMATS, ids=IDS)
def pending(request: pytest.FixtureRequest, tmp_path: Path, held: int) -> Path:
    """An image whose digests are still to be taken."""
    committed(held, "a", request.param, before=False)
    return tmp_path / "a"


def verified(path: Path) -> int | None:
    with image.opened(path) as opened:
        return digesting.verify(opened, digesting.Watch())


def add(path: Path) -> bool:
    with image.opened(path) as opened:
        return digesting.add(opened, digesting.Watch())


def flip(path: Path, at: int, bit: int) -> None:
    with files.opened(path, os.O_RDWR) as fd:
        (was,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([was ^ (1 << bit)]), at)


def test_the_area_is_as_described(path: Path) -> None:
    raw = path.read_bytes()
    with image.opened(path) as opened:
        block, begin = opened.block, opened.block.stream_offset
    area = raw[block.digest_offset : block.digest_offset + block.digest_length]
    magic, version, algorithm, piece, first, end, taken = struct.unpack_from("<8sIIQQQQ", area)
    assert (magic, version, algorithm, piece) == (b"MSDIGEST", 1, 1, MIB)
    assert (first, end) == (begin, len(raw))
    assert taken > 1_700_000_000
    assert area[48:64] == xxhash.xxh3_128_digest(area[:48] + area[64:])
    expected = b""
    for number in range(begin // MIB, -(-end // MIB)):
        data = raw[max(begin, number * MIB) : (number + 1) * MIB]
        expected += xxhash.xxh3_128_digest(data) if data.strip(b"\0") else bytes(16)
    assert area[64:] == expected
    assert b"\0" * 16 in expected, "an image without a hole proves less"


@contextmanager
def in_memory(path: Path) -> Iterator[Path]:
    """Yield the path of a copy that is in memory only, with the same holes."""
    with files.in_memory() as fd, files.opened(path) as source:
        os.ftruncate(fd, path.stat().st_size)
        for start, end in holes.extents(source, 0, path.stat().st_size):
            os.pwrite(fd, os.pread(source, end - start, start), start)
        yield Path(f"/proc/self/fd/{fd}")


def test_every_bit_that_turns_is_found_and_named(path: Path) -> None:
    """Over the whole file from its stream on, at random: in pages, bitmaps, devices and holes."""
    with in_memory(path) as copy:
        _flip_all_over(copy)


def _flip_all_over(path: Path) -> None:
    with image.opened(path) as opened:
        stream = opened.validate().stream
        begin, end = stream.offset, stream.end
    chosen = random.Random(15)
    # Half of them in pages that are used, which most of the file is not.
    pages = [
        block.pages_offset + page * 4096
        for block, known in zip(stream.blocks, BLOCKS, strict=True)
        for page in known.used
    ]
    assert verified(path)
    for number in range(FLIPS):
        at = chosen.randrange(begin, end)
        if number % 2:
            at = chosen.choice(pages) + chosen.randrange(4096)
        bit = chosen.randrange(8)
        flip(path, at, bit)
        with pytest.raises(errors.InvalidImage) as caught:
            verified(path)
        flip(path, at, bit)
        places = caught.value.data["damaged"]
        assert any(each["offset"] <= at < each["offset"] + each["length"] for each in places), at
        block = next((b for b in stream.blocks if b.pages_offset <= at < b.end), None)
        if block is not None:
            assert isinstance(caught.value, errors.DataDamaged)
            (place,) = [each for each in places if each["block"] == block.name]
            assert 0 <= at - block.pages_offset - place["address"] < place["ram_bytes"] <= MIB
            assert f"RAM block {block.name!r} from 0x{place['address']:x}" in caught.value.message
    assert verified(path)


def test_flips_in_the_header_are_no_damage_of_the_data(path: Path) -> None:
    """Each is found by what covers it, or was in a slot or copy that is not needed."""
    with image.opened(path) as opened:
        block = opened.block
    area = range(block.digest_offset, block.digest_offset + block.digest_length)
    chosen = random.Random(16)
    found: set[str] = set()
    for number in range(60):
        at = chosen.choice(area) if number % 2 else chosen.randrange(block.stream_offset)
        bit = chosen.randrange(8)
        flip(path, at, bit)
        try:
            verified(path)
        except errors.MapsaveError as error:
            found.add(error.id)
            if at in area:
                assert error.id == "image.digests_damaged"
        else:
            assert at not in area
        flip(path, at, bit)
    assert "image.data_damaged" not in found


def test_damaged_digests_are_a_warning_where_they_are_not_asked_for(path: Path) -> None:
    with image.opened(path) as opened:
        at = opened.block.digest_offset + 70
    flip(path, at, 3)
    (warning,) = inspect.verify(str(path))["warnings"]
    assert "digests of its data" in warning


@pytest.mark.parametrize("sparse", ["always", "never"])
def test_copies_with_other_holes_have_the_same_digests(
    path: Path, tmp_path: Path, sparse: str
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", f"--sparse={sparse}", path, copy], check=True)
    assert verified(copy)


def test_marks_leave_the_digests(path: Path) -> None:
    with image.opened(path) as opened:
        opened.mark(State.RESTORED)
        opened.mark_stale()
    assert verified(path)


def test_digests_that_are_added_are_those_of_a_save(pending: Path) -> None:
    assert verified(pending) is None
    with image.opened(pending) as opened:
        assert opened.block.digests == "pending"
        before = opened.block
    assert add(pending)
    assert verified(pending)
    with image.opened(pending) as opened:
        assert opened.block.digests == "taken"
        changed = {"digest_length": opened.block.digest_length, "sequence": before.sequence + 2}
        assert opened.block == dataclasses.replace(before, **changed)
        added = opened.taken_digests()
        opened.mark(State.RESTORED)
    assert add(pending), "once more changes nothing"
    with image.opened(pending) as opened:
        again = opened.taken_digests()
        assert added is not None
        assert added == again


def test_what_was_marked_while_digests_were_taken_stays_marked(pending: Path) -> None:
    """Both have the image open from before: who writes the header reads it first."""
    with image.opened(pending) as marking, image.opened(pending) as adding:
        taken = data_digests.take(
            adding.fd, adding.block.stream_offset, adding.block.file_length, ignore
        )
        marking.mark(State.RESTORED)
        adding.add_digests(taken)
        assert adding.block.state is State.RESTORED
        marking.mark_stale()
    with image.opened(pending) as opened:
        assert (opened.block.state, opened.metadata["continued"]) == (State.RESTORED, True)
    assert verified(pending)


def put_back(path: Path, header: bytes) -> None:
    with files.opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, header, 0)


def torn(number: int, part: float) -> Callable[[int, bytes, int], int]:
    """Return a pwrite of which one call, by its number, writes a part and ends all."""
    real, calls = os.pwrite, itertools.count()

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if next(calls) == number:
            real(fd, bytes(data)[: int(len(data) * part)], at)
            raise KeyboardInterrupt
        return real(fd, data, at)

    return pwrite


def test_a_crash_while_digests_are_added_leaves_a_good_image(
    pending: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write, with as much of it on the disk as there may be."""
    with pending.open("rb") as file:
        good = file.read(build.M * 2)
    stopped = set()
    for number in range(4):
        for part in (0.0, 0.1, 0.9, 1.0):
            put_back(pending, good)
            with monkeypatch.context() as patched, image.opened(pending) as opened:
                taken = data_digests.take(
                    opened.fd, opened.block.stream_offset, opened.block.file_length, ignore
                )
                patched.setattr(os, "pwrite", torn(number, part))
                try:
                    opened.add_digests(taken)
                except KeyboardInterrupt:
                    stopped.add(number)
            with image.opened(pending) as opened:
                opened.validate()
                is_taken = opened.block.digests == "taken"
            assert (verified(pending) is not None) == is_taken
            assert add(pending)
            assert verified(pending)
    assert stopped == {0, 1, 2}, "the area, and both slots"


def test_a_save_without_room_has_none_and_says_so(held: int, tmp_path: Path) -> None:
    with image.creating(held, "a", {}, stream_offset=build.M) as partial:
        fill(partial, 1)
        partial.commit({}, replace=False)
    path = tmp_path / "a"
    assert verified(path) is None
    assert not add(path)
    with image.opened(path) as opened:
        assert opened.block.digests == "none"


def test_the_header_grows_with_the_guest(held: int) -> None:
    tib = 1 << 40
    assert data_digests.room(tib) > 16 << 20
    assert data_digests.room(100 * tib) == 0
    for header in FORMATS:
        with image.creating(
            held, "big", {}, stream_offset=MIB, libvirt=header, digest_room=data_digests.room(tib)
        ) as partial:
            assert partial.block.stream_offset > 2 * data_digests.room(tib)
            assert partial.block.digest_room == data_digests.room(tib)
            # What does not fit would be in the way of the digests.
            with pytest.raises(ValueError, match="does not fit"):
                partial.note({"note": "x" * (1 << 20)})


def test_metadata_never_reach_the_digests(held: int, tmp_path: Path) -> None:
    """However often they change, and grow to what there is room for."""
    committed(held, "a", None)
    path = tmp_path / "a"
    with image.opened(path) as opened:
        room = opened.block.place.areas(opened.block.stream_offset)[2] - opened.block.digest_room
        opened.metadata["note"] = "x" * (room - 300)
        opened.mark_stale()
        opened.mark_stale()
        assert opened.metadata["continued"]
    assert verified(path)


def test_an_unreadable_place_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def failing(fd: int, buffers: list[memoryview], at: int) -> int:
        if at == 2 * MIB:
            raise OSError(5, "Input/output error")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(errors.UnreadableImage, match=f"Input/output error at byte {2 * MIB}"):
        verified(path)


def test_a_file_system_without_direct_reads_is_read_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One refuses the flag, another the read."""
    real = os.preadv

    def refusing(fd: int, buffers: list[memoryview], at: int) -> int:
        if os.get_blocking(fd) and is_direct(fd):
            raise OSError(22, "Invalid argument")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", refusing)
    assert verified(path)


def is_direct(fd: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def test_holes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"x", 5 << 30)
    read: list[int] = []
    with files.opened(path) as fd:
        found = data_digests.take(fd, 4096, 1 << 40, read.append)
    assert len(read) <= 1
    assert len(found.table) == 16 << 20
    assert found.table.count(0) >= len(found.table) - 16


def test_a_reading_that_is_ended_ends(path: Path) -> None:
    watch = digesting.Watch()
    watch.end()
    with image.opened(path) as opened, pytest.raises(errors.Interrupted):
        digesting.verify(opened, watch)


def test_pieces_are_counted_once(path: Path) -> None:
    counted: list[int] = []
    seen: set[int] = set()

    def put(number: int, data: memoryview) -> None:
        assert number not in seen
        seen.add(number)
        counted.append(len(data))

    noted: list[int] = []
    with files.opened(path) as fd:
        piece_reader.read(fd, 100, path.stat().st_size - 7, put, noted.append)
    assert sorted(counted) == sorted(noted)
    assert 0 in seen


@given(
    st.binary(max_size=400),
    st.lists(st.tuples(st.integers(0, 79), st.integers(0, 7)), min_size=1, max_size=4),
)
def test_no_area_is_believed(more: bytes, flips: list[tuple[int, int]]) -> None:
    good = bytearray(data_digests.Digests(build.M, build.M + 5, 7, b"\1" * 16).pack())
    bad = bytearray(good)
    for at, bit in flips:
        bad[at] ^= 1 << bit
    with files.in_memory() as fd:
        block = _block(len(good))
        for raw, is_good in ((good, True), (bad, bad == good), (more, more == bytes(good))):
            os.ftruncate(fd, 0)
            os.pwrite(fd, bytes(raw), block.digest_offset)
            if is_good:
                assert data_digests.read(fd, block) is not None
            else:
                with pytest.raises(errors.DigestsDamaged):
                    data_digests.read(fd, block)


@given(st.integers(0, 1 << 40), st.integers(0, (1 << 63) - 1))
def test_no_length_is_believed(length: int, size: int) -> None:
    """However long the file claims to be, nothing is allocated that the header could not hold."""
    with files.in_memory() as fd:
        block = dataclasses.replace(_block(length), file_length=size)
        read: Callable[[], object] = lambda: data_digests.read(fd, block)  # noqa: E731
        if length == 0:
            assert read() is None
        else:
            with pytest.raises(errors.DigestsDamaged):
                read()


def _block(length: int) -> image.Superblock:
    import uuid

    return image.Superblock(
        State.SAVED,
        sequence=2,
        stream_offset=build.M,
        uuid=uuid.UUID(bytes=build.UUID),
        file_length=build.M + 5,
        digest_offset=build.M - 4096,
        digest_length=length,
    )
