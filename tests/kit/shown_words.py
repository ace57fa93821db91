"""Have another command line than the one a process was started by (``/proc/PID/cmdline``)."""

import ctypes
import mmap
import os
from pathlib import Path

# prctl(2) and linux/prctl.h: all addresses at once, which takes no capability.
_SET_MM, _MAP = 35, 14
_KEPT: list[mmap.mmap] = []  # as long as the process lives


class _Map(ctypes.Structure):
    """``struct prctl_mm_map``."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack")),
        *((name, ctypes.c_uint64) for name in ("arg_start", "arg_end", "env_start", "env_end")),
        ("auxv", ctypes.c_void_p),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


def show(words: list[str]) -> bool:
    """Show these words from now on; return whether the kernel permits it."""
    raw = b"".join(os.fsencode(word) + b"\0" for word in words)
    # Private: of memory that may be shared, the kernel shows nothing.
    memory = mmap.mmap(-1, len(raw), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(raw)
    _KEPT.append(memory)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    library = ctypes.CDLL(None)
    library.sbrk.restype = ctypes.c_void_p
    # proc(5): the fields after the name, which is the second.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    at = {number: int(fields[number - 3]) for number in (26, 27, 28, 45, 46, 47, 50, 51)}
    wanted = _Map(
        start_code=at[26],
        end_code=at[27],
        start_data=at[45],
        end_data=at[46],
        start_brk=at[47],
        brk=library.sbrk(0),
        start_stack=at[28],
        arg_start=place,
        arg_end=place + len(raw),
        env_start=at[50],
        env_end=at[51],
        exe_fd=0xFFFFFFFF,
    )
    size = ctypes.c_ulong(ctypes.sizeof(wanted))
    changed = library.prctl(
        _SET_MM, ctypes.c_ulong(_MAP), ctypes.byref(wanted), size, ctypes.c_ulong(0)
    )
    return bool(changed == 0)
