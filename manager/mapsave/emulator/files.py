"""Opening what a ``file:`` address names, with QEMU's error texts.

Source: QEMU's ``util/osdep.c`` (``qemu_open_internal``) of 10.0, observed.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from mapsave.emulator import fdset
from mapsave.emulator.faults import QmpError

if TYPE_CHECKING:
    from mapsave.emulator.fdset import FdSets


def open_file(fdsets: FdSets, filename: str, flags: int) -> int:
    """Open ``filename``, or duplicate from its fdset. Raises QmpError."""
    if filename.startswith(fdset.PREFIX):
        return fdsets.open(filename, flags)
    try:
        return os.open(filename, flags | os.O_CLOEXEC, 0o600 if flags & os.O_CREAT else 0o777)
    except OSError as error:
        if error.errno == errno.EINVAL and flags & os.O_DIRECT:
            reason = "filesystem does not support O_DIRECT"
        else:
            reason = os.strerror(error.errno or 0)
        verb = "create" if flags & os.O_CREAT else "open"
        raise QmpError(f"Could not {verb} '{filename}': {reason}") from None
