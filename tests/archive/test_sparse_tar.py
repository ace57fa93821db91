"""The tar: read by others as by mapsave, holes are holes, and nothing hostile gets far."""

import io
import os
import random
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.archive import libraries, sparse_tar
from mapsave.archive.coding import Coding
from mapsave.archive.sparse_tar import Head
from mapsave.image import data_digests, holes

from tests.archive import moved
from tests.image import build
from tests.kit import files

PAGE = 4096
MIB = build.MIB
SIZE = 3 * MIB + 5000
FEW = settings(max_examples=25, deadline=None)
PAGES = st.lists(st.integers(0, SIZE // PAGE), max_size=40)


def fill(fd: int, pages: list[int], size: int = SIZE) -> None:
    """Make a file of ``size`` bytes that has data in some pages, the last one perhaps cut short."""
    contents = random.Random(len(pages))
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size)
    for page in {0, *pages}:
        length = min(PAGE, size - page * PAGE)
        os.pwrite(fd, contents.randbytes(max(0, length)), page * PAGE)


def extents(fd: int) -> list[tuple[int, int]]:
    return list(holes.extents(fd, 0, os.fstat(fd).st_size))


@FEW
@given(PAGES, st.sampled_from((moved.PLAIN, Coding(), Coding(level=19))))
def test_what_is_read_is_what_was_written(pages: list[int], coded: Coding) -> None:
    with files.in_memory() as source, files.in_memory() as target:
        fill(source, pages)
        head = moved.unpacked(moved.packed(source, coded), target)
        assert (head.name, head.size) == ("web.mapsave", SIZE)
        assert moved.contents(target) == moved.contents(source)
        # What is held back is written whole, and dug out again where that is possible.
        assert extents(target) == extents(source)


@FEW
@given(PAGES)
def test_python_reads_it(pages: list[int]) -> None:
    with files.in_memory() as source:
        fill(source, pages)
        raw = moved.packed(source)
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            first, second = archive
            assert (first.name, second.name) == ("web.mapsave", "web.mapsave.digests")
            assert (first.size, first.mode) == (SIZE, 0o600)
            file, manifest = archive.extractfile(first), archive.extractfile(second)
            assert file is not None
            assert manifest is not None
            assert file.read() == moved.contents(source)
            known = data_digests.unpack(manifest.read(), 0, SIZE)
        assert known.table == data_digests.take(source, 0, SIZE).table


@pytest.mark.parametrize("name", ["web", "ü " * 60, "x" * 255, "new\nline", "back\\slash=\t"])
def test_gnu_tar_unpacks_it_with_its_holes(tmp_path: Path, name: str) -> None:
    with files.opened(tmp_path / "source", os.O_RDWR | os.O_CREAT) as source:
        fill(source, [1, 5, 6, 300])
        raw = moved.packed(source, name=name)
        done = subprocess.run(
            ["tar", "-xS"], input=raw, capture_output=True, check=False, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, b"")
        with files.opened(tmp_path / name) as found:
            assert moved.contents(found) == moved.contents(source)
            assert extents(found) == extents(source)
    digests = "image.digests" if len(name) == 255 else f"{name}.digests"
    assert set(os.listdir(tmp_path)) == {"source", name, digests}


def test_more_than_8_gib_are_listed_by_gnu_tar() -> None:
    """Where the size does not fit the header: the digests come right after so many bytes."""
    stored = (9 << 30) + 512
    head = Head("large", 1 << 40, stored, 1)
    with subprocess.Popen(
        ["tar", "-tv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as tar:
        assert tar.stdin is not None
        assert tar.stdout is not None
        assert tar.stderr is not None
        tar.stdin.write(head.pack())
        map_ = b"2\n0\n%d\n%d\n0\n" % (9 << 30, 1 << 40)
        tar.stdin.write(map_ + sparse_tar.padding(len(map_)))
        zeros = bytes(MIB)
        for _ in range(9 << 10):
            tar.stdin.write(zeros)
        tar.stdin.write(head.pack_manifest(512) + bytes(512) + sparse_tar.END)
        tar.stdin.close()
        lines = tar.stdout.read().decode().splitlines()
        assert tar.stderr.read() == b""
    assert [(line.split()[2], line.split()[-1]) for line in lines] == [
        (str(1 << 40), "large"),
        ("512", "large.digests"),
    ]


def damaged(raw: bytes, identities: tuple[object, ...] = ()) -> bytes | None:
    """Return what an archive is unpacked to; None where it is refused."""
    with files.in_memory() as target:
        try:
            moved.unpacked(raw, target, identities)
        except (errors.BadArchive, errors.NotDecrypted, errors.UsageError, errors.NoRoom):
            return None
        return moved.contents(target)


@pytest.mark.parametrize("kind", ["tar", "zstd", "age"])
def test_each_bit_that_turned_is_found(tmp_path: Path, kind: str) -> None:
    identity = moved.Identity(tmp_path)
    coded = {
        "tar": moved.PLAIN,
        "zstd": Coding(),
        "age": Coding(recipients=identity.recipients),
    }[kind]
    identities = identity.identities if kind == "age" else ()
    with files.in_memory() as source:
        fill(source, [1, 5, 6, 300])
        raw, good = moved.packed(source, coded), moved.contents(source)
    assert damaged(raw, identities) == good
    choice = random.Random(kind)
    places = {*range(0, len(raw), 97), *range(0, 2048, 5), *range(len(raw) - 2048, len(raw), 5)}
    for at in sorted(places):
        wrong = bytearray(raw)
        wrong[at] ^= 1 << choice.randrange(8)
        found = damaged(bytes(wrong), identities)
        # A zstd frame has a few bits that change nothing of what is decompressed.
        assert found is None or (kind == "zstd" and found == good), at


@pytest.mark.parametrize("kind", ["tar", "zstd", "age"])
def test_one_that_is_cut_short_or_too_long(tmp_path: Path, kind: str) -> None:
    identity = moved.Identity(tmp_path)
    coded = {
        "tar": moved.PLAIN,
        "zstd": Coding(),
        "age": Coding(recipients=identity.recipients),
    }[kind]
    identities = identity.identities if kind == "age" else ()
    with files.in_memory() as source:
        fill(source, [1, 5, 6, 300])
        raw = moved.packed(source, coded)
    for length in {*range(0, len(raw), 331), *range(len(raw) - 1100, len(raw), 7), len(raw) - 1}:
        assert damaged(raw[:length], identities) is None, length
    for more in (b"x", bytes(512), bytes(10240), raw):
        assert damaged(raw + more, identities) is None, more


def hostile(head: Head, rest: bytes) -> bytes:
    return head.pack() + rest


def mapped(*numbers: int, size: int = SIZE, data: int = 0) -> bytes:
    """Return an archive that has these numbers as its map."""
    raw = b"".join(b"%d\n" % each for each in numbers)
    raw += sparse_tar.padding(len(raw))
    return Head("web", size, len(raw) + data, 1).pack() + raw + bytes(data)


HOSTILE = {
    "nothing": b"",
    "text": b"hello\n" * 1000,
    "too large": hostile(Head("web", 1 << 62, 512, 1), b""),
    "too small": hostile(Head("web", 512, 512, 1), b"1\n0\n512\n"),
    "nothing stored": hostile(Head("web", SIZE, 0, 1), b""),
    "more stored than there can be": hostile(Head("web", SIZE, SIZE * 90, 1), b""),
    "no extents": mapped(0),
    "extents without end": mapped(1 << 60, *[0, 512] * 20),
    "fewer extents than it says": mapped(3, 0, 512, SIZE, 0),
    "an extent behind the end": mapped(2, 0, 512, SIZE, 512, data=1024),
    "an extent over the end": mapped(1, 0, SIZE + 1, data=SIZE + 1),
    "extents that overlap": mapped(3, 0, 1024, 512, 1024, SIZE, 0, data=2048),
    "extents that touch": mapped(3, 0, 512, 512, 512, SIZE, 0, data=1024),
    "extents out of order": mapped(3, 1024, 512, 0, 512, SIZE, 0, data=1024),
    "an empty extent": mapped(3, 0, 512, 4096, 0, SIZE, 0, data=512),
    "no end": mapped(1, 0, 512, data=512),
    "more data than the map has": mapped(2, 0, 512, SIZE, 0, data=1024),
    "less data than the map has": mapped(2, 0, 2048, SIZE, 0, data=1024),
    "a number of many digits": mapped(10**40),
    "a map that has no line": Head("web", SIZE, 1024, 1).pack() + b"1" * 1024,
}


WORDS = {
    "nothing": "cut short",
    "text": "headers are damaged",
    "too large": "says that its image has",
    "too small": "only 512 bytes",
    "nothing stored": "0 of them stored",
    "more stored than there can be": "of them stored",
    "a number of many digits": "headers are damaged",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_hostile_is_refused_before_anything_is_allocated(what: str) -> None:
    with files.in_memory() as target:
        tracemalloc.start()
        try:
            with pytest.raises(errors.BadArchive, match=WORDS.get(what, "map of holes")):
                moved.unpacked(HOSTILE[what], target)
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()
        assert os.fstat(target).st_size in (0, SIZE)


def of_python(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    """Return a tar of Python's with one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("web")
        member.size = SIZE
        change(member)
        archive.addfile(member, io.BytesIO(bytes(SIZE)))
    return out.getvalue()


def link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0


@pytest.mark.parametrize("change", [lambda _: None, link])
def test_another_tar_is_refused(change: Callable[[tarfile.TarInfo], None]) -> None:
    with files.in_memory() as target, pytest.raises(errors.BadArchive) as caught:
        moved.unpacked(of_python(change), target)
    assert "tar -xS" in str(caught.value.hint)


def test_a_second_image_in_place_of_the_digests() -> None:
    with files.in_memory() as source:
        fill(source, [1])
        raw = moved.packed(source)
        member = raw[: raw.index(b"path=") // 512 * 512 - 512]
    assert damaged(member + member + sparse_tar.END) is None


def test_bombs_are_not_decompressed_at_once() -> None:
    zstd = libraries.zstd()
    bomb = zstd.compress(Head("web", 1 << 40, 1 << 39, 1).pack() + bytes(256 * MIB))
    tracemalloc.start()
    try:
        assert damaged(bomb) is None
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_window_that_takes_2_gib() -> None:
    zstd = libraries.zstd()
    chosen = zstd.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    window = zstd.ZstdCompressor(compression_params=chosen).compressobj()
    raw = window.compress(bytes(4 * MIB)) + window.flush()
    with files.in_memory() as target, pytest.raises(errors.BadArchive, match="too much memory"):
        moved.unpacked(raw, target)


def test_a_file_that_changes_between_two_looks() -> None:
    with files.in_memory() as source:
        fill(source, [1])
        layout = sparse_tar.layout(source, SIZE, moved.nothing)
        os.pwrite(source, b"x", 2 * MIB)
        assert sparse_tar.layout(source, SIZE, moved.nothing) != layout
        assert sum(map(len, sparse_tar.map_of(source, SIZE, layout))) in range(4096)
