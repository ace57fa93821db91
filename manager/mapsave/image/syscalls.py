"""The few Linux system calls that Python's ``os`` lacks: openat2, renameat2, cachestat and others.

Each has its man page in section 2. ctypes is imported on first use: it costs some milliseconds.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Sequence

# The first two are the same on every architecture: they came after numbers were unified.
_SYS_OPENAT2 = 437
_SYS_CACHESTAT = 451
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RENAME_NOREPLACE = 1
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_WRITE, _WAIT = 0x2, 0x1 | 0x2 | 0x4  # SYNC_FILE_RANGE_WRITE; and _WAIT_BEFORE, _WAIT_AFTER
_AT_EMPTY_PATH = 0x1000
_CLONE_NEWNET = 0x40000000
_STATX_DIOALIGN = 0x2000
# ioprio_set(2), which has another number on each architecture.
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_LOWEST = 2 << 13 | 7  # best effort, of eight levels
_IOPRIO_IDLE = 3 << 13


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write ``data`` at ``offset``, in pieces if need be. Raises OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _call(name: str, *args: object) -> int:
    """Call a function of libc; raise OSError with its errno where it returns -1."""
    import ctypes

    result: int = getattr(_libc(), name)(*args)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def open_beneath(directory: int, name: str, flags: int, mode: int = 0) -> int:
    """Open ``name`` beneath the directory descriptor, never through a symbolic link.

    Kernels before 5.6 have no openat2; there a single component with O_NOFOLLOW is as safe. Raises
    OSError as open(2) does; ELOOP or EXDEV where a link or ``..`` would lead out.
    """
    import ctypes

    how = (ctypes.c_uint64 * 3)(
        flags | os.O_CLOEXEC,
        mode,
        _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV,
    )
    path = ctypes.c_char_p(os.fsencode(name))
    try:
        return _call(
            "syscall",
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            path,
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
    except OSError as error:
        if error.errno != errno.ENOSYS or "/" in name:
            raise
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=directory)


def rename(directory: int, source: str, target: str, *, replace: bool) -> None:
    """Rename within a directory. Raises OSError; FileExistsError unless it may ``replace`` one."""
    import ctypes

    if replace:
        os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)
        return
    old, new = ctypes.c_char_p(os.fsencode(source)), ctypes.c_char_p(os.fsencode(target))
    try:
        _call("renameat2", directory, old, directory, new, ctypes.c_uint(_RENAME_NOREPLACE))
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise FileExistsError(error.errno, os.strerror(error.errno), target) from None
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # A file system without the flag (NFS, some FUSE): link refuses an existing name as well.
        try:
            os.link(source, target, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as unlinked:
            if unlinked.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            _rename_unseen(directory, source, target)
        else:
            os.unlink(source, dir_fd=directory)


def _rename_unseen(directory: int, source: str, target: str) -> None:
    """Rename where links are unknown too (FUSE, object stores): between look and rename another
    program may create ``target``, though no other save does."""
    try:
        os.stat(target, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    import ctypes

    _call("fallocate64", fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def preallocate(fd: int, offset: int, length: int) -> None:
    """Reserve bytes of disk, the file's size unchanged. Raises OSError: ENOSPC, EOPNOTSUPP."""
    _fallocate(fd, _FALLOC_FL_KEEP_SIZE, offset, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give bytes back to the file system; they read as zeros. Raises OSError: EOPNOTSUPP."""
    _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length)


def direct_io_alignment(fd: int) -> tuple[int, int] | None:
    """Return the (memory, offset) alignment in bytes that O_DIRECT needs on this file.

    None where the kernel does not say (statx(2): STATX_DIOALIGN, Linux 6.1); (0, 0) where the file
    system takes no O_DIRECT at all.
    """
    import ctypes

    buffer = (ctypes.c_uint32 * 64)()  # struct statx is 256 bytes
    try:
        _call("statx", fd, b"", _AT_EMPTY_PATH, ctypes.c_uint(_STATX_DIOALIGN), buffer)
    except OSError:
        return None
    mask, memory, offset = buffer[0], buffer[38], buffer[39]  # stx_mask, 0x98, 0x9c
    return (memory, offset) if mask & _STATX_DIOALIGN else None


def file_system_type(fd: int) -> int:
    """Return the magic number of the file system that ``fd`` is on (statfs(2)). Raises OSError."""
    import ctypes

    buffer = (ctypes.c_long * 64)()  # struct statfs has 120 bytes and begins with f_type
    _call("fstatfs64", fd, ctypes.byref(buffer))
    return buffer[0]


def cached_bytes(fd: int, offset: int, length: int) -> int | None:
    """Return how many bytes of that part of a file are in the page cache.

    None where the kernel does not say (cachestat(2): Linux 6.5; later ones only to who may write
    the file).
    """
    counts = _cachestat(fd, offset, length)
    return counts[0] * os.sysconf("SC_PAGE_SIZE") if counts is not None else None


def dirty_parts(fd: int, start: int, end: int, size: int) -> list[tuple[int, int]] | None:
    """Return those parts of ``size`` bytes that have pages which are dirty, or just being written.

    A guest may wait for it, so each call costs no more than it must. None as ``cached_bytes``.
    """
    import ctypes

    ask, number, file = _libc().syscall, ctypes.c_long(_SYS_CACHESTAT), ctypes.c_uint(fd)
    part, counts, flags = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)(), ctypes.c_uint(0)
    of, into = ctypes.byref(part), ctypes.byref(counts)
    found = []
    for begin in range(start, end, size):
        stop = min(begin + size, end)
        part[0], part[1] = begin, stop - begin
        if ask(number, file, of, into, flags):
            return None
        if counts[1] or counts[2]:
            found.append((begin, stop))
    return found


def dirty_bytes(fd: int, offset: int, length: int) -> int | None:
    """Return how many bytes of that part of a file are dirty, or just being written.

    None as ``cached_bytes``.
    """
    counts = _cachestat(fd, offset, length)
    return (counts[1] + counts[2]) * os.sysconf("SC_PAGE_SIZE") if counts is not None else None


def _cachestat(fd: int, offset: int, length: int) -> tuple[int, int, int] | None:
    """Return how many pages are in the page cache, dirty and being written."""
    import ctypes

    part = (ctypes.c_uint64 * 2)(offset, length)
    counts = (ctypes.c_uint64 * 5)()  # struct cachestat
    try:
        _call(
            "syscall",
            ctypes.c_long(_SYS_CACHESTAT),
            ctypes.c_uint(fd),
            ctypes.byref(part),
            ctypes.byref(counts),
            ctypes.c_uint(0),
        )
    except OSError:
        return None
    return counts[0], counts[1], counts[2]


def write_out(fd: int, parts: Sequence[tuple[int, int]]) -> None:
    """Write what is dirty in these parts of a file to its disk, all of them at once, and wait.

    Not for the disk's own cache. Raises OSError (sync_file_range(2)).
    """
    import ctypes

    for how in (_WRITE, _WAIT):
        for start, end in parts:
            offset, length = ctypes.c_int64(start), ctypes.c_int64(end - start)
            _call("sync_file_range", fd, offset, length, ctypes.c_int(how))


def lower_io_priority(*, is_idle: bool) -> None:
    """Have what this thread reads come after what others read, or only while no one else reads.

    So do the threads that it begins. Not every scheduler of a disk knows it (ioprio_set(2)); where
    it cannot be set nothing is raised.
    """
    import ctypes

    number = _SYS_IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        wanted = _IOPRIO_IDLE if is_idle else _IOPRIO_LOWEST
        with contextlib.suppress(OSError):
            _call("syscall", ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, wanted)


def leave_network() -> None:
    """Move the calling thread to a network namespace of its own. Raises OSError."""
    _call("unshare", _CLONE_NEWNET)
