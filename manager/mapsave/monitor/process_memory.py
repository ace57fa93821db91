"""Read another process's memory: process_vm_readv(2).

It needs the same rights as ptrace(2) does: the same user and no capability that we lack, or
CAP_SYS_PTRACE; Yama and security modules may refuse it beyond that.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Sequence

    import numpy as np

_IOV_MAX = 1024  # spans of one call (limits.h)


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    return libc


def read(pid: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return what process ``pid`` has at ``spans``, addresses and lengths, one after another.

    Raises OSError: EPERM where it is not allowed, ESRCH where the process is gone or not in our
    pid namespace, EFAULT where it has not all of that mapped.
    """
    import ctypes

    import numpy as np

    remote = np.array(spans, dtype=np.uintp)
    total = int(remote[:, 1].sum())
    into = np.empty(total, dtype=np.uint8)
    done = 0
    for first in range(0, len(remote), _IOV_MAX):
        part = remote[first : first + _IOV_MAX]
        length = int(part[:, 1].sum())
        local = (ctypes.c_size_t * 2)(into.ctypes.data + done, length)
        result = _libc().process_vm_readv(
            ctypes.c_int(pid),
            ctypes.byref(local),
            ctypes.c_ulong(1),
            ctypes.c_void_p(part.ctypes.data),
            ctypes.c_ulong(len(part)),
            ctypes.c_ulong(0),
        )
        if result != length:
            number = ctypes.get_errno() if result == -1 else errno.EFAULT
            raise OSError(number, os.strerror(number))
        done += length
    return into
