"""The picture of an image: each RAM block with its used pages, and how these lie in runs."""

import dataclasses
from collections.abc import Sequence

from mapsave import units
from mapsave.image.cells import Cells
from mapsave.pictures import squares, svg

MOST_BLOCKS = 12
# Of all squares together: a line of a path takes seven characters, a picture up to 300 KB.
MOST_CELLS = 36_000
_BAR = 420  # pixels of the longest bar
_KINDS = (
    "zero",
    *(f"used{level + 1}" for level in range(svg.LEVELS)),
    *(f"shared{level + 1}" for level in range(svg.LEVELS)),
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What an image's picture shows.

    ``lines`` are about the image. ``runs``: how many runs there are of so many pages, from and to.
    ``left_out``: how many blocks are too small to be shown, and their bytes.
    """

    title: str
    lines: Sequence[str]
    blocks: Sequence[Cells]
    runs: Sequence[tuple[int, int, int]]
    left_out: tuple[int, int] = (0, 0)


def drawn(shown: Shown) -> str:
    """Return the picture, less than 300 KB of it."""
    parts = [svg.legend(_legend(shown.blocks))]
    parts.append(squares.row([_square(each) for each in shown.blocks], _KINDS))
    number, size = shown.left_out
    if number:
        words = f"and {number} smaller RAM blocks, {units.format_size(size)} together"
        parts.append(svg.Part(svg.text(0, 12, words, kind="faint"), 0, 16))
    if shown.runs:
        parts.append(_histogram(shown.runs))
    return svg.document(shown.title, shown.lines, parts)


def _legend(blocks: Sequence[Cells]) -> list[tuple[str, str]]:
    entries = [
        ("zero", "zero"),
        ("used1", "up to ¼ used"),
        ("used2", "½"),
        ("used3", "¾"),
        ("used4", "all"),
    ]
    if any(each.shared is not None and any(each.shared) for each in blocks):
        entries.append(("shared4", "shared with another file"))
    return entries


def _square(cells: Cells) -> squares.Square:
    block = cells.block
    used = sum(cells.used) * block.page_size
    says = f"{units.format_size(block.used_length)}, {units.format_size(used)} used"
    if cells.shared is not None and any(cells.shared):
        says += f", {units.format_size(sum(cells.shared) * block.page_size)} shared"
    says += f"; a square is {squares.exact(cells.cell_pages * block.page_size)}"
    shared = cells.shared or [0] * len(cells.used)
    last = block.pages - (len(cells.used) - 1) * cells.cell_pages
    sizes = [*[cells.cell_pages] * (len(cells.used) - 1), last]
    shades = bytes(map(_shade, cells.used, shared, sizes))
    return squares.Square(block.name, says, cells.order, shades)


def _shade(used: int, shared: int, pages: int) -> int:
    level = squares.level(used, pages)
    return level + svg.LEVELS if level and 2 * shared >= used else level


def _histogram(runs: Sequence[tuple[int, int, int]]) -> svg.Part:
    """Return how many runs there are of each length, as bars in proportion to their number."""
    most = max(number for _, _, number in runs)
    body = [svg.text(0, 14, "Runs of used pages, by their length")]
    y = 28
    for first, last, number in runs:
        label = f"{first}" if first == last else f"{first}-{last}"
        body.append(svg.text(120, y + 12, label, anchor="end"))
        length = max(1.0, _BAR * number / most)
        body.append(svg.rect(130, y, length, 14, kind="used3", said=f"{number} runs of {label}"))
        body.append(svg.text(136 + length, y + 12, str(number), kind="faint"))
        y += 20
    return svg.Part("\n".join(body), 130 + _BAR + 90, y)
