"""Parts of a file as (start, end), and extents as (logical, physical, length): set operations."""

from collections.abc import Iterable, Iterator, Sequence

Span = tuple[int, int]
Extent = tuple[int, int, int]


def cut(start: int, end: int, size: int) -> Iterator[Span]:
    """Yield the part from ``start`` to ``end`` in pieces of ``size`` bytes, or less at the end."""
    for at in range(start, end, size):
        yield at, min(at + size, end)


def joined(parts: Iterable[Span]) -> list[Span]:
    """Return the parts in order, those that touch or overlap made one."""
    found: list[Span] = []
    for start, end in sorted(parts):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def without(extents: Iterable[Extent], parts: Sequence[Span]) -> list[Extent]:
    """Return what is left of the extents outside of ``parts``, which are ``joined``.

    In order; what is next to one another in the file and on the disk is one.
    """
    left: list[Extent] = []
    number = 0
    for logical, physical, length in sorted(extents):
        at, end = logical, logical + length
        while number and parts[number - 1][1] > at:
            number -= 1  # extents may overlap
        while at < end:
            while number < len(parts) and parts[number][1] <= at:
                number += 1
            start, stop = parts[number] if number < len(parts) else (end, end)
            if at < start:
                _add(left, (at, physical + at - logical, min(start, end) - at))
            at = max(at, stop)
    return left


def _add(left: list[Extent], extent: Extent) -> None:
    if left:
        logical, physical, length = left[-1]
        if (logical + length, physical + length) == extent[:2]:
            left[-1] = (logical, physical, length + extent[2])
            return
    left.append(extent)
