"""The service's memory: what a large piece of work has taken goes back to the system."""

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable

from mapsave import blocking
from mapsave.monitor import process

# Seconds between two looks whether so many bytes more are held, or free, than after the last one.
_LOOK, _GROWN = 10.0, 4 << 20
# Parameters of mallopt(3), from malloc.h, and bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE = 128 << 10

_libc = ctypes.CDLL(None)


class _Info(ctypes.Structure):
    """What mallinfo2(3) returns, ``size_t`` each."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def be_sparing() -> None:
    """Have the C library keep little that is free; to be called before there are threads.

    With an arena for each thread, and thresholds that grow with the largest piece there was, as it
    has them by itself (mallopt(3)), it kept 20 MB of an answer with 20 000 lines.
    """
    with_glibc = getattr(_libc, "mallopt", lambda *_: None)
    for parameter, value in (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, _LARGE),
        (_TRIM_THRESHOLD, _LARGE),
    ):
        with_glibc(parameter, value)


async def give_back(is_idle: Callable[[], bool]) -> None:
    """Give the system what a large piece of work has left free, now and then, forever.

    Python looks for cycles the more seldom the more it holds, and the C library keeps free memory
    between blocks in use (malloc_trim(3)). ``is_idle`` is whether nothing else runs that a look at
    all that is in use would hold up.
    """
    trim = getattr(_libc, "malloc_trim", lambda _: None)  # of glibc only
    least, kept = _resident(), _free()
    while True:
        await asyncio.sleep(_LOOK)
        # What was in use at the last look may have become free since, and the service no larger.
        if _resident() > least + _GROWN or _free() > kept + _GROWN:
            if is_idle():
                gc.collect()
            await blocking.call(trim, 0)
            least, kept = _resident(), _free()
        least, kept = min(least, _resident()), min(kept, _free())


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    return process.resident_bytes(os.getpid()) or 0


def _free() -> int:
    """Return the bytes that the C library keeps free, given back or not; 0 where it does not say.

    glibc says so since 2.33 (mallinfo2(3)).
    """
    info = getattr(_libc, "mallinfo2", None)
    if info is None:
        return 0
    info.restype = _Info
    return int(info().fordblks)
