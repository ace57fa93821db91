"""Fill the page cache of a file with folios of one page each, before it is mapped.

A write to a mapped file makes its whole folio dirty, and QEMU asks for huge pages for its RAM: XFS
would have up to 2 MiB written for each page that the guest changes. What is in the page cache by
then stays as it is. What is read ahead by advice (POSIX_FADV_WILLNEED) is in folios of the
smallest size (Linux, ``mm/readahead.c``: ``force_page_cache_ra``).
"""

import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence

from mapsave.image import descriptors, holes, read_ahead, spans
from mapsave.image.spans import Span

# File systems that have none but small ones.
_SMALL = frozenset(("btrfs",))


def are_needed(system: str | None) -> bool:
    """Return whether the file system of that name makes larger ones by itself."""
    return system not in _SMALL


def fill(fd: int, parts: Sequence[Span], most: int, stop: threading.Event) -> int:
    """Read the parts of a file, data before holes, ``most`` bytes of it; return how many were.

    Until ``stop`` is set. Raises OSError.
    """
    # A description of its own, for what is advised holds for all of one.
    with descriptors.reopened(fd, os.O_RDONLY) as own:
        data = [span for start, end in parts for span in holes.extents(own, start, end)]
        whole = ((start, start, end - start) for start, end in parts)
        rest = [(at, at + length) for at, _, length in spans.without(whole, data)]
        reader = read_ahead.Reader(own, read_ahead.Limits(None, math.inf), stop)
        reader.read(_first((*data, *rest), most))
        return reader.done_bytes


def _first(parts: Iterable[Span], most: int) -> Iterator[Span]:
    for start, end in parts:
        if most > 0:
            yield start, min(end, start + most)
        most -= end - start
