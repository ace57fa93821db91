"""A file system in user space that passes all on to another directory, as far as its rules let it.

    with passthrough.mounted(tmp_path, passthrough.Ways(lseek=False)) as place:
        ...  # ``place`` does not report holes
    with passthrough.mounted(tmp_path) as place, passthrough.hanging(place, "fsync"):
        ...  # an fsync there is not answered, and a process that waits for it cannot be killed

It speaks the kernel's protocol (linux/fuse.h) in a process of its own, so that it may hang.
"""

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kit import processes, storage, tree

_PAGE = 4096
_MAX_WRITE = 1 << 20
_ROOT = 1

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_FLAGS = 1 << 5 | 1 << 22  # FUSE_BIG_WRITES, FUSE_MAX_PAGES
_INIT_OUT = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, _FLAGS, 16, 12, _MAX_WRITE, 1, 256, 0, 0)
_OPERATIONS = {
    1: "lookup",
    3: "getattr",
    4: "setattr",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "release",
    20: "fsync",
    25: "flush",
    26: "init",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    30: "fsyncdir",
    35: "create",
    43: "fallocate",
    45: "rename2",
    46: "lseek",
}
_SILENT = (2, 36, 42)  # forget, interrupt, batch_forget: no answer is expected


@dataclasses.dataclass(frozen=True)
class Ways:
    """What it can do, and how it fails.

    ``zeros``: pages of zeros that are written become holes, as with ZFS. ``short``: a write in the
    second 16 MiB of a file is cut to so many bytes, once, where more than zeros are lost by that.
    """

    lseek: bool = True
    direct_io: bool = True
    rename_flags: bool = True
    link: bool = True
    zeros: bool = False
    short: int = 0


_WELL = Ways()


@contextlib.contextmanager
def mounted(directory: Path, ways: Ways = _WELL) -> Iterator[Path]:
    """Mount it on a new directory inside ``directory``, before another such one; yield where."""
    place, backing = directory / "passed", directory / "backing"
    backing.mkdir()
    known = json.dumps(dataclasses.asdict(ways))
    command = [sys.executable, "-m", __name__, str(backing), str(place), known]
    environment = {"PYTHONPATH": tree.PYTHONPATH}
    with (
        storage.unmounted_at_end(place),
        processes.running(command, env=environment, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        yield place


@contextlib.contextmanager
def hanging(place: Path, *operations: str) -> Iterator[None]:
    """Let these operations (all of them: ``*``) hang in the meantime."""
    control = place.parent / "hanging"
    control.write_text(" ".join(operations))
    try:
        yield
    finally:
        control.unlink()


def is_held(place: Path) -> bool:
    """Return whether an operation that is to hang does, or has done so."""
    return (place.parent / "held").exists()


class _Server:
    def __init__(self, device: int, backing: str, ways: Ways) -> None:
        self._device = device
        self._ways = ways
        self._control = os.path.join(os.path.dirname(backing), "hanging")
        self._held = os.path.join(os.path.dirname(backing), "held")
        root = os.open(backing, os.O_RDONLY | os.O_DIRECTORY)
        self._nodes = {_ROOT: root}
        self._known: dict[tuple[int, int], int] = {}
        self._cut = not ways.short

    def serve(self) -> None:
        waiting: list[bytes] = []
        while True:
            ready, _, _ = select.select([self._device], [], [], 0.05 if waiting else None)
            hung = self._hung()
            if ready:
                try:
                    waiting.append(os.read(self._device, _MAX_WRITE + _PAGE))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return  # it is unmounted
                    assert error.errno == errno.ENOENT, error  # the caller has gone
            for raw in list(waiting):
                name = _OPERATIONS.get(_IN.unpack_from(raw)[1], "")
                if "*" not in hung and name not in hung:
                    waiting.remove(raw)
                    self._answer(raw, name)
            if waiting:
                with open(self._held, "w"):  # for ``is_held``
                    pass

    def _hung(self) -> list[str]:
        with contextlib.suppress(OSError), open(self._control) as file:
            return file.read().split()
        return []

    def _answer(self, raw: bytes, name: str) -> None:
        length, operation, unique, node, *_ = _IN.unpack_from(raw)
        if operation in _SILENT:
            return
        failure, body = 0, b""
        try:
            function: Callable[[int, memoryview], bytes] | None = getattr(self, f"_{name}", None)
            if function is None:
                raise OSError(errno.ENOSYS, "")
            body = function(node, memoryview(raw)[_IN.size : length])
        except OSError as error:
            failure = -(error.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):  # no one waits for it any more
            os.write(self._device, _OUT.pack(_OUT.size + len(body), failure, unique) + body)

    def _init(self, _node: int, _data: memoryview) -> bytes:
        return _INIT_OUT

    # Names. A node is an O_PATH descriptor, so that it has no path that could change.

    def _entry(self, parent: int, name: str) -> bytes:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._nodes[parent])
        stats = os.fstat(fd)
        node = self._known.setdefault((stats.st_dev, stats.st_ino), fd + _ROOT + 1)
        if self._nodes.setdefault(node, fd) != fd:
            os.close(fd)
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + _attributes(stats)

    def _lookup(self, node: int, data: memoryview) -> bytes:
        return self._entry(node, *_names(data))

    def _getattr(self, node: int, _data: memoryview) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + _attributes(os.fstat(self._nodes[node]))

    def _setattr(self, node: int, data: memoryview) -> bytes:
        fields = struct.unpack_from("<IIQQQQQQIIIIIIII", data)
        valid, size, mode, uid, gid = (fields[at] for at in (0, 3, 11, 13, 14))
        path = f"/proc/self/fd/{self._nodes[node]}"
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(path, size)
        return self._getattr(node, data)

    def _mkdir(self, node: int, data: memoryview) -> bytes:
        mode, _ = struct.unpack_from("<II", data)
        (name,) = _names(data[8:])
        os.mkdir(name, mode, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _unlink(self, node: int, data: memoryview) -> bytes:
        os.unlink(*_names(data), dir_fd=self._nodes[node])
        return b""

    def _rmdir(self, node: int, data: memoryview) -> bytes:
        os.rmdir(*_names(data), dir_fd=self._nodes[node])
        return b""

    def _rename(self, node: int, data: memoryview) -> bytes:
        (target,) = struct.unpack_from("<Q", data)
        return self._renamed(node, target, 0, data[8:])

    def _rename2(self, node: int, data: memoryview) -> bytes:
        if not self._ways.rename_flags:
            raise OSError(errno.ENOSYS, "")
        target, flags, _ = struct.unpack_from("<QII", data)
        return self._renamed(node, target, flags, data[16:])

    def _renamed(self, node: int, target: int, flags: int, data: memoryview) -> bytes:
        old, new = map(os.fsencode, _names(data))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(self._nodes[node], old, self._nodes[target], new, flags):
            raise OSError(ctypes.get_errno(), "")
        return b""

    def _link(self, node: int, data: memoryview) -> bytes:
        if not self._ways.link:
            raise OSError(errno.EPERM, "")
        (old,) = struct.unpack_from("<Q", data)
        (name,) = _names(data[8:])
        os.link(f"/proc/self/fd/{self._nodes[old]}", name, dst_dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _statfs(self, node: int, _data: memoryview) -> bytes:
        found = os.statvfs(self._nodes[node])
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<QQQQQIIII24x", *counts, found.f_bsize, 255, found.f_frsize, 0)

    # Files: a handle is a descriptor.

    def _opened(self, flags: int, path: str, mode: int = 0, directory: int | None = None) -> bytes:
        if flags & os.O_DIRECT and not self._ways.direct_io:
            raise OSError(errno.EINVAL, "")
        flags &= ~(os.O_DIRECT | os.O_NOFOLLOW)
        return struct.pack("<QII", os.open(path, flags, mode, dir_fd=directory), 0, 0)

    def _open(self, node: int, data: memoryview) -> bytes:
        flags, _ = struct.unpack_from("<II", data)
        return self._opened(flags & ~(os.O_CREAT | os.O_EXCL), f"/proc/self/fd/{self._nodes[node]}")

    def _create(self, node: int, data: memoryview) -> bytes:
        flags, mode, _, _ = struct.unpack_from("<IIII", data)
        (name,) = _names(data[16:])
        handle = self._opened(flags | os.O_CREAT, name, stat.S_IMODE(mode), self._nodes[node])
        return self._entry(node, name) + handle

    def _read(self, _node: int, data: memoryview) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", data)
        return os.pread(handle, size, offset)

    def _write(self, _node: int, data: memoryview) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", data)
        content = data[40 : 40 + size]
        if not self._cut and 16 <= offset >> 20 < 32 and any(content[self._ways.short :]):
            self._cut, content = True, content[: self._ways.short]
        done = os.pwrite(handle, content, offset)
        if self._ways.zeros:
            self._punch(handle, offset, content)
        return struct.pack("<II", done, 0)

    def _punch(self, handle: int, offset: int, content: memoryview) -> None:
        for at in range(0, len(content), _PAGE):
            if not any(content[at : at + _PAGE]):
                _fallocate(handle, 3, offset + at, min(_PAGE, len(content) - at))

    def _lseek(self, _node: int, data: memoryview) -> bytes:
        if not self._ways.lseek:
            raise OSError(errno.ENOSYS, "")
        handle, offset, whence = struct.unpack_from("<QQI", data)
        return struct.pack("<Q", os.lseek(handle, offset, whence))

    def _fallocate(self, _node: int, data: memoryview) -> bytes:
        handle, offset, length, mode = struct.unpack_from("<QQQI", data)
        _fallocate(handle, mode, offset, length)
        return b""

    def _fsync(self, _node: int, data: memoryview) -> bytes:
        os.fsync(struct.unpack_from("<Q", data)[0])
        return b""

    def _flush(self, _node: int, _data: memoryview) -> bytes:
        return b""

    def _release(self, _node: int, data: memoryview) -> bytes:
        os.close(struct.unpack_from("<Q", data)[0])
        return b""

    # Directories.

    def _opendir(self, node: int, _data: memoryview) -> bytes:
        path = f"/proc/self/fd/{self._nodes[node]}"
        return struct.pack("<QII", os.open(path, os.O_RDONLY | os.O_DIRECTORY), 0, 0)

    _fsyncdir = _fsync
    _releasedir = _release

    def _readdir(self, _node: int, data: memoryview) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", data)
        body = b""
        for number, name in list(enumerate(sorted(os.listdir(handle)), 1))[offset:]:
            raw = os.fsencode(name)
            entry = struct.pack("<QQII", 1, number, len(raw), 0) + raw
            entry += bytes(-len(entry) % 8)
            if len(body) + len(entry) > size:
                break
            body += entry
        return body


def _names(data: memoryview) -> list[str]:
    return [os.fsdecode(name) for name in bytes(data).split(b"\0")[:-1]]


def _attributes(stats: os.stat_result) -> bytes:
    times = (stats.st_atime_ns, stats.st_mtime_ns, stats.st_ctime_ns)
    return _ATTR.pack(
        stats.st_ino,
        stats.st_size,
        stats.st_blocks,
        *(time // 10**9 for time in times),
        *(time % 10**9 for time in times),
        stats.st_mode,
        stats.st_nlink,
        stats.st_uid,
        stats.st_gid,
        0,
        _PAGE,
        0,
    )


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "")


def _main(backing: str, place: str, ways: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    root = f"{stat.S_IFDIR | 0o700:o}"
    options = f"fd={device},rootmode={root},user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"test", os.fsencode(place), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    _Server(device, backing, Ways(**json.loads(ways))).serve()


if __name__ == "__main__":
    _main(*sys.argv[1:])
