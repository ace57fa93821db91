"""The cursor finds what lies across the pieces it reads, and never leaves the file."""

import os
from collections.abc import Iterator

import pytest
from mapsave import errors
from mapsave.image import cursor
from mapsave.image.cursor import Cursor

PATTERN = b"\x7e\0\0\0\5"
SIZE = 1 << 20


@pytest.fixture
def fd() -> Iterator[int]:
    """A file of one MiB of zeros."""
    descriptor = os.memfd_create("cursor")
    os.ftruncate(descriptor, SIZE)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("border", [cursor._CHUNK, 2 * cursor._CHUNK - len(PATTERN) + 1])
def test_pattern_across_the_border_of_pieces(fd: int, border: int) -> None:
    for at in range(border - 9, border + 9):
        os.pwrite(fd, PATTERN, at)
        assert Cursor(fd, 0, SIZE).find(PATTERN, "state") == at
        # The same where something smaller was read there before.
        here = Cursor(fd, at - 3, SIZE)
        here.peek(1, "byte")
        assert here.find(PATTERN, "state") == at
        os.pwrite(fd, bytes(len(PATTERN)), at)


@pytest.mark.parametrize("left", [0, 1, 4])
def test_pattern_cut_by_the_end_is_not_found(fd: int, left: int) -> None:
    os.pwrite(fd, PATTERN, SIZE - left)
    os.ftruncate(fd, SIZE)
    with pytest.raises(errors.TruncatedImage):
        Cursor(fd, 0, SIZE).find(PATTERN, "state")


def test_pattern_at_the_very_end(fd: int) -> None:
    os.pwrite(fd, PATTERN, SIZE - len(PATTERN))
    assert Cursor(fd, 0, SIZE).find(PATTERN, "state") == SIZE - len(PATTERN)


def test_nothing_is_read_behind_the_end(fd: int) -> None:
    at = Cursor(fd, SIZE - 3, SIZE)
    assert at.peek_up_to(10) == bytes(3) and at.remaining == 3
    assert not at.stands_here(bytes(4)) and at.stands_here(bytes(3))
    with pytest.raises(errors.TruncatedImage, match="inside a number at offset 1048573") as caught:
        at.u32("a number")
    assert caught.value.data == {"size": SIZE, "expected": SIZE + 1}
    with pytest.raises(errors.TruncatedImage):
        at.skip_to(SIZE + 1, "pages")
    assert at.offset == SIZE - 3


def test_file_that_is_shorter_than_said(fd: int) -> None:
    os.ftruncate(fd, 100)
    at = Cursor(fd, 98, SIZE)
    with pytest.raises(errors.TruncatedImage):
        at.u32("a number")
    with pytest.raises(errors.TruncatedImage):
        at.find(PATTERN, "state")
