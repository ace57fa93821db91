"""A file system in user space that has a root directory and nothing in it (linux/fuse.h).

with fuse.mounted(place, user=54321):
    os.stat(place).st_uid  # whatever the server says: 0
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.kit import wait

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_GETATTR, _INIT = 3, 26
_INIT_OUT = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 16, 0, 0)
_MODE = stat.S_IFDIR | 0o755
# A directory of root's.
_ATTR_OUT = struct.pack("<QIIQQQQQQIIIIIIIIII", 1, 0, 0, 1, *[0] * 8, _MODE, 2, 0, 0, 0, 4096, 0)
_MNT_DETACH = 2


@contextlib.contextmanager
def mounted(place: Path, *, user: int) -> Iterator[None]:
    """Mount it at ``place``, as one that a process of ``user`` serves; unmount it at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode={_MODE:o},user_id={user},group_id=0,allow_other".encode()
    try:
        if libc.mount(b"test", os.fsencode(place), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        server = threading.Thread(target=_serve, args=(device,))
        server.start()
        try:
            yield
        finally:
            assert libc.umount2(os.fsencode(place), _MNT_DETACH) == 0
            server.join(wait.LONG)
            assert not server.is_alive()
    finally:
        os.close(device)


def _serve(device: int) -> None:
    while True:
        try:
            raw = os.read(device, 1 << 17)
        except OSError as error:
            assert error.errno == errno.ENODEV, error  # it is unmounted
            return
        _, operation, unique, *_ = _IN.unpack_from(raw)
        body = {_INIT: _INIT_OUT, _GETATTR: _ATTR_OUT}.get(operation)
        failure = 0 if body is not None else -errno.ENOSYS
        answer = body or b""
        with contextlib.suppress(OSError):
            os.write(device, _OUT.pack(_OUT.size + len(answer), failure, unique) + answer)
