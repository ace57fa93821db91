"""RAM blocks as squares: cells on a Hilbert curve, so that neighbours in memory are neighbours.

A cell is a square of a grid of 2^order by 2^order; what a row has of one shade is one line of a
path, so that the size of the text depends on the cells and not on the guest.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

from mapsave import units
from mapsave.pictures import svg

_HEAD = 42  # pixels above a square: its name, and what it holds
_GAP = 32  # pixels between squares
_ROW = 1100  # pixels that squares in a row may take
# Pixels of a cell, by order; a square of the largest has 512.
_PIXELS = (96, 48, 32, 20, 12, 8, 6, 4)
LARGEST_ORDER = len(_PIXELS) - 1
ZERO, BEYOND = 0, 255


@dataclasses.dataclass(frozen=True)
class Square:
    """A RAM block: the shade of each cell, an index into ``kinds``; ``ZERO`` is the ground."""

    name: str
    says: str
    order: int
    shades: bytes


def level(some: int, whole: int) -> int:
    """Return how much ``some`` of ``whole`` is, from 0 to ``svg.LEVELS``: 0 is nothing at all."""
    return -(-svg.LEVELS * some // whole)


def exact(size: int) -> str:
    """Return the size of a cell, which is a whole number of pages, for people."""
    return units.format_size(size).replace(".0 ", " ")


def row(squares: Sequence[Square], kinds: Sequence[str]) -> svg.Part:
    """Return the squares beside each other, in as many rows as they need."""
    body = []
    x = y = height = widest = 0.0
    for square in squares:
        side = _PIXELS[square.order] << square.order
        width = max(side, 7.5 * max(len(square.name), len(square.says)))
        if x and x + width > _ROW:
            x, y, height = 0.0, y + height + _GAP, 0.0
        body.append(svg.moved(x, y, _drawn(square, kinds, side)))
        x += width + _GAP
        height, widest = max(height, _HEAD + side), max(widest, x - _GAP)
    return svg.Part("\n".join(body), widest, y + height)


def _drawn(square: Square, kinds: Sequence[str], side: int) -> str:
    cells = 1 << square.order
    lines = paths(square.order, square.shades)
    drawn = [
        f'<path class="{"beyond" if shade == BEYOND else kinds[shade]}" d="{line}"/>'
        for shade, line in sorted(lines.items())
        if shade != ZERO
    ]
    return "\n".join(
        [
            svg.text(0, 14, square.name),
            svg.text(0, 14 + svg.LINE, square.says, kind="faint"),
            f'<svg class="cells" y="{_HEAD}" width="{side}" height="{side}" '
            f'viewBox="0 0 {cells} {cells}" shape-rendering="crispEdges" '
            f"data-block={svg.attribute(square.name)}>",
            svg.rect(0, 0, cells, cells, kind="zero"),
            '<g transform="translate(0 .5)">',
            *drawn,
            "</g></svg>",
        ]
    )


def paths(order: int, shades: bytes) -> dict[int, str]:
    """Return what is to be drawn in each shade: the lines of a path that is one cell thick.

    ``shades`` are in the order of the memory; what is after them is ``BEYOND``.
    """
    side = 1 << order
    grid = bytearray([BEYOND]) * (side * side)
    for place, shade in zip(places(order), shades, strict=False):
        grid[place] = shade
    found: dict[int, list[str]] = {}
    for y in range(side):
        x = 0
        ends: dict[int, int] = {}
        for shade, cells in itertools.groupby(grid[y * side : (y + 1) * side]):
            length = sum(1 for _ in cells)
            lines = found.setdefault(shade, [])
            move = f"m{x - ends[shade]} 0" if shade in ends else f"M{x} {y}"
            lines.append(f"{move}h{length}")
            x += length
            ends[shade] = x
    return {shade: "".join(lines) for shade, lines in found.items()}


@functools.cache
def places(order: int) -> tuple[int, ...]:
    """Return the place in the grid, row after row, of each cell of the curve."""
    points = [(0, 0)]
    for half in (1 << step for step in range(order)):
        points = [
            *((y, x) for x, y in points),
            *((x, y + half) for x, y in points),
            *((x + half, y + half) for x, y in points),
            *((2 * half - 1 - y, half - 1 - x) for x, y in points),
        ]
    return tuple(y << order | x for x, y in points)
