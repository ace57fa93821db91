"""Read another process's memory: process_vm_readv(2).

It needs the same rights as ptrace(2) does: the same user and no capability that we lack, or
CAP_SYS_PTRACE; Yama and security modules may refuse it beyond that.
"""

from __future__ import annotations

import array
import errno
import functools
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_IOV_MAX = 1024  # spans of one call (limits.h)


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    return libc


def read(pid: int, spans: Sequence[tuple[int, int]]) -> bytearray:
    """Return what process ``pid`` has at ``spans``, addresses and lengths, one after another.

    Raises OSError: EPERM where it is not allowed, ESRCH where the process is gone or not in our
    pid namespace, EFAULT where it has not all of that mapped.
    """
    import ctypes

    into = bytearray(sum(length for _, length in spans))
    address = ctypes.addressof(ctypes.c_char.from_buffer(into))
    done = 0
    for first in range(0, len(spans), _IOV_MAX):
        part = spans[first : first + _IOV_MAX]
        length = sum(length for _, length in part)
        remote = array.array("L", itertools.chain.from_iterable(part))  # struct iovec
        local = array.array("L", (address + done, length))
        result = _libc().process_vm_readv(
            ctypes.c_int(pid),
            ctypes.c_void_p(local.buffer_info()[0]),
            ctypes.c_ulong(1),
            ctypes.c_void_p(remote.buffer_info()[0]),
            ctypes.c_ulong(len(part)),
            ctypes.c_ulong(0),
        )
        if result != length:
            number = ctypes.get_errno() if result == -1 else errno.EFAULT
            raise OSError(number, os.strerror(number))
        done += length
    return into
