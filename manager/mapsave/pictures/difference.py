"""The picture of what differs between two images, or an image and a guest."""

import dataclasses
from collections.abc import Sequence

from mapsave import units
from mapsave.image import cells
from mapsave.pictures import image, squares, svg

MOST_BLOCKS = image.MOST_BLOCKS
_KINDS = ("zero", "used1", *(f"differs{level + 1}" for level in range(svg.LEVELS)))


@dataclasses.dataclass(frozen=True)
class Square:
    """A RAM block: of each cell how many pages are used on a side, and how many differ."""

    name: str
    pages: int
    order: int
    cell_pages: int
    page_size: int
    used: Sequence[int]
    differing: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the picture shows; ``lines`` are about both sides."""

    title: str
    lines: Sequence[str]
    blocks: Sequence[Square]


def orders(pages: Sequence[int]) -> list[int]:
    """Return the order of each block's square."""
    return cells.orders(pages, squares.LARGEST_ORDER, image.MOST_CELLS)


def drawn(shown: Shown) -> str:
    """Return the picture, less than 300 KB of it."""
    legend = [("zero", "zero"), ("used1", "equal"), ("differs1", "up to ¼ differ")]
    legend += [("differs2", "½"), ("differs3", "¾"), ("differs4", "all")]
    row = squares.row([_square(each) for each in shown.blocks], _KINDS)
    return svg.document(shown.title, shown.lines, [svg.legend(legend), row])


def _square(block: Square) -> squares.Square:
    last = block.pages - (len(block.used) - 1) * block.cell_pages
    sizes = [*[block.cell_pages] * (len(block.used) - 1), last]
    shades = bytes(
        1 + squares.level(differing, pages) if differing else min(used, 1)
        for differing, used, pages in zip(block.differing, block.used, sizes, strict=True)
    )
    says = (
        f"{units.format_size(block.pages * block.page_size)}, "
        f"{units.format_size(sum(block.differing) * block.page_size)} differ; "
        f"a square is {squares.exact(block.cell_pages * block.page_size)}"
    )
    return squares.Square(block.name, says, block.order, shades)
