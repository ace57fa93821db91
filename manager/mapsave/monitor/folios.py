"""How large the folios are in which a process has its memory: what a write to a page makes dirty.

``/proc/PID/pagemap`` has the number of a page's frame, ``/proc/kpageflags`` whether that is the
first or another one of a compound page (``Documentation/admin-guide/mm/pagemap.rst``). The kernel
shows both to root alone.
"""

import os
import random
import struct
from collections.abc import Iterator, Sequence

from mapsave.monitor import pagemap

_ENTRY = struct.Struct("=Q")
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_HEAD, _TAIL = 1 << 15, 1 << 16  # KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL
_MOST = 512  # pages of a folio: a huge page of x86
_WINDOWS, _WINDOW, _EACH = 64, 512, 4  # places that are looked at, pages there, samples of each


def mean_bytes(pid: int, parts: Sequence[range]) -> float | None:
    """Return the mean size of the folios of pages in memory, by a sample of these addresses.

    None where no page is in memory, or the kernel does not show it. Takes some milliseconds.
    """
    try:
        with (
            pagemap.entries_of(pid) as entries,
            open("/proc/kpageflags", "rb", buffering=0) as flags,
        ):
            sizes = [_pages(flags.fileno(), frame) for frame in _frames(entries, parts)]
    except OSError:
        return None
    return sum(sizes) / len(sizes) * pagemap.PAGE if sizes else None


def _frames(entries: int, parts: Sequence[range]) -> Iterator[int]:
    """Yield the frames of some pages that are in memory. Raises OSError where they are not told."""
    total = sum(map(len, parts))
    source = random.Random(total)  # noqa: S311 - the same each time: two looks can be compared
    for _ in range(_WINDOWS):
        at = source.randrange(total) if total else 0
        for part in parts:
            if at < len(part):
                start = (part.start + at) // pagemap.PAGE
                last = min(start + _WINDOW, part.stop // pagemap.PAGE)
                raw = os.pread(entries, (last - start) * _ENTRY.size, start * _ENTRY.size)
                there = [entry for (entry,) in _ENTRY.iter_unpack(raw) if entry & _PRESENT]
                for entry in source.sample(there, min(_EACH, len(there))):
                    if not entry & _FRAME:
                        raise PermissionError
                    yield entry & _FRAME
                break
            at -= len(part)


def _pages(flags: int, frame: int) -> int:
    """Return of how many pages the folio is that a frame is in. Raises OSError."""
    first = max(0, frame - _MOST + 1)
    raw = os.pread(flags, 2 * _MOST * _ENTRY.size, first * _ENTRY.size)
    kinds = [kind for (kind,) in _ENTRY.iter_unpack(raw)]
    at = frame - first
    if at >= len(kinds) or not kinds[at] & (_HEAD | _TAIL):
        return 1
    begin = next((n for n in range(at, -1, -1) if kinds[n] & _HEAD), 0)
    end = next((n for n in range(begin + 1, len(kinds)) if not kinds[n] & _TAIL), len(kinds))
    return end - begin
