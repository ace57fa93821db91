"""Which pages of a process may have contents: of our own memory, where we know it."""

import contextlib
import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.monitor import mappings, pagemap

from tests.kit import need, storage

PAGE = pagemap.PAGE
PAGES = 64
USED = (0, 7, 8, 63)


@contextlib.contextmanager
def address_of(mapped: mmap.mmap) -> Iterator[int]:
    """Yield where a mapping is; what refers to it is gone at the end."""
    held = ctypes.c_char.from_buffer(mapped)
    try:
        yield ctypes.addressof(held)
    finally:
        del held


def touched(mapped: mmap.mmap) -> list[int]:
    with address_of(mapped) as address, pagemap.opened(os.getpid()) as known:
        return list(known.pages(address, PAGES).search(1))


def test_anonymous_memory() -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, PAGES * PAGE, flags=flags) as mapped:
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
        for page in USED:
            mapped[page * PAGE] = 1
        assert touched(mapped) == list(USED)


@pytest.mark.root
@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_memory_in_a_file(flags: int) -> None:
    """Pages that another process has written to the file, and, of a private one, copies of ours."""
    need.skip_if(need.root())
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate((PAGES + 3) * PAGE)
        for page in USED[:2]:
            os.pwrite(file.fileno(), b"x", (3 + page) * PAGE)
        with mmap.mmap(file.fileno(), PAGES * PAGE, flags=flags, offset=3 * PAGE) as mapped:
            for page in USED[2:]:
                mapped[page * PAGE] = 1
            before = os.fstat(file.fileno()).st_blocks
            assert touched(mapped) == list(USED)
        assert os.fstat(file.fileno()).st_blocks == before


def test_what_is_not_mapped_is_an_error() -> None:
    with pagemap.opened(os.getpid()) as known, pytest.raises(OSError, match="address"):
        known.pages(PAGE, 1)


def test_what_was_touched_of_a_file_and_what_was_changed(tmp_path: Path) -> None:
    """The kernel maps others with the one that is read: those of the same 64 KiB."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGES * PAGE)
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), (PAGES - 8) * PAGE, mmap.MAP_PRIVATE, offset=8 * PAGE) as mapped,
    ):
        assert mapped[3 * PAGE] == ord("x")
        mapped[40 * PAGE] = 1
        which = mappings.File.of(file.fileno())
        ((offset, found),) = pagemap.of_file(os.getpid(), which)
        ((_, changed),) = pagemap.of_file(os.getpid(), which, changed=True)
    assert (offset, len(found)) == (8 * PAGE, PAGES - 8)
    assert found[3]
    assert found[40]
    assert not found[20:32].any()
    assert list(changed.search(1)) == [40]
    assert path.read_bytes() == b"x" * PAGES * PAGE


@pytest.mark.root
def test_another_file_of_the_same_inode_number(tmp_path: Path) -> None:
    """As a library on another file system may have it."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in ("images", "libraries"):
            (tmp_path / name).mkdir()
            place = stack.enter_context(storage.tmpfs(1 << 20, tmp_path / name))
            file = stack.enter_context((place / "file").open("w+b"))
            file.truncate(PAGES * PAGE)
            mapped = stack.enter_context(mmap.mmap(file.fileno(), PAGES * PAGE))
            mapped[PAGE] = 1
            found.append((mappings.File.of(file.fileno()), mapped))
        (ours, _), (others, _) = found
        need.skip_if(
            None if ours.inode == others.inode else "all of tmpfs counts its inodes as one"
        )
        (mapping,) = mappings.of_file(os.getpid(), ours)
        ((offset, _),) = pagemap.of_file(os.getpid(), ours)
        assert (mapping.offset, mapping.end, offset) == (0, PAGES * PAGE, 0)
