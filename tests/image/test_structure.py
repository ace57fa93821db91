"""A bit that turns anywhere in a stream but its pages is found; holes count as zeros."""

import os
import subprocess
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import image, structure

from tests.image import build, ours


@pytest.fixture
def path(tmp_path: Path, held: int) -> Path:
    """A native image that has the digest of its structure."""
    with image.creating(held, "a", {}, stream_offset=build.M) as partial:
        ours.fill(partial)
        found = partial.validate()
        known = {"structure_digest": found.structure_digest}
        partial.commit(known, replace=False)
    return tmp_path / "a"


def _structure(path: Path) -> list[int]:
    """Return the offsets of all bytes that are neither pages nor the holes before them."""
    with image.opened(path) as opened:
        stream = opened.validate().stream
    found: list[int] = []
    at = stream.offset
    for block in stream.blocks:
        found += range(at, block.bitmap_offset + block.bitmap_bytes)
        at = block.end
    return [*found, *range(at, stream.end)]


def test_no_bit_of_the_structure_turns_unnoticed(path: Path) -> None:
    unnoticed = []
    with path.open("r+b", buffering=0) as file:
        for at in _structure(path):
            was = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([was[0] ^ (1 << at % 8)]), at)
            try:
                with image.opened(path) as opened:
                    opened.validate()
                unnoticed.append(at)
            except errors.MapsaveError as error:
                assert error.exit_code == 6
            os.pwrite(file.fileno(), was, at)
    assert unnoticed == []
    with image.opened(path) as opened:
        opened.validate()


def test_a_page_is_not_of_the_structure(path: Path) -> None:
    with image.opened(path) as opened:
        block = opened.validate().stream.blocks[0]
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"other", block.pages_offset)
    with image.opened(path) as opened:
        opened.validate()


def test_copies_with_other_holes_are_good(path: Path, tmp_path: Path) -> None:
    for option in ("always", "never"):
        copy = tmp_path / option
        subprocess.run(["cp", f"--sparse={option}", path, copy], check=True)
        with image.opened(copy) as opened:
            opened.validate()


def test_an_image_without_the_digest_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "old"
    build.Image().built().write(path)
    with image.opened(path) as opened:
        assert not opened.has_structure_digest
        opened.validate()


def test_a_bitmap_with_a_vast_hole_costs_nothing(tmp_path: Path) -> None:
    blocks = [build.Block("big", 1 << 40, (0,))]  # a bitmap of 32 MiB
    dense, path = tmp_path / "dense", tmp_path / "big"
    build.Image(blocks=blocks).built().write(dense)
    subprocess.run(["cp", "--sparse=always", dense, path], check=True)
    fd = os.open(path, os.O_RDONLY)
    reads = 0
    plain = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        return plain(fd, length, offset)

    try:
        with image.opened(path) as opened:
            stream = opened.validate().stream
        os.pread = counted
        structure.digest(fd, stream)
    finally:
        os.pread = plain
        os.close(fd)
    assert reads < 100
