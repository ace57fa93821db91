"""The matrix as a heat map: an SVG that reads on light and on dark ground."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from tests.bench.matrix_cells import Cell, Measured

_WIDTH, _HEIGHT = 52, 26  # pixels of a square
_LEFT, _TOP, _RIGHT, _BOTTOM = 190, 210, 130, 70
_KEY = 88  # pixels of a square of the legend
_SLANT = 55  # degrees, of the column heads
# Up to how many times the best, its colour, and that of the text on it: from light to dark, so
# that they differ without colours too.
_SHADES = (
    (1.15, "#fde725", "#000000"),
    (1.5, "#90d743", "#000000"),
    (2.5, "#35b779", "#000000"),
    (5.0, "#21918c", "#000000"),
    (10.0, "#31688e", "#ffffff"),
    (math.inf, "#440154", "#ffffff"),
)
_STYLE = """
text { font: 12px system-ui, sans-serif; }
.label { fill: #1f2328; }
.ours { font-weight: bold; }
.square { stroke: #808080; stroke-width: 0.5; }
@media (prefers-color-scheme: dark) { .label { fill: #e6edf3; } }
"""


def drawn(cells: Sequence[Cell]) -> str:
    """Return the picture: a row for each cell of the matrix, a square for each measurement.

    A square says how many times as long its save or restore took as the best one of the row.
    """
    heads: dict[tuple[str, str], int] = {}
    for action in ("save", "restore"):
        for cell in cells:
            for each in cell.measured:
                if each.action == action:
                    heads.setdefault((action, each.way.name), len(heads))
    width = _LEFT + max(_WIDTH * len(heads), _KEY * len(_SHADES)) + _RIGHT
    height = _TOP + _HEIGHT * len(cells) + _BOTTOM
    parts = [_head(*key, at) for key, at in heads.items()]
    for row, cell in enumerate(cells):
        y = _TOP + row * _HEIGHT
        label = escape(f"{cell.layout.name}, {cell.filesystem}")
        place = f'x="{_LEFT - 8}" y="{y + 17}" text-anchor="end"'
        parts.append(f'<text class="label" {place}>{label}</text>')
        for each in cell.measured:
            column = heads[each.action, each.way.name]
            parts.append(_square(cell, each, _LEFT + column * _WIDTH, y))
    parts += _legend(_TOP + _HEIGHT * len(cells) + 24)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n'
        "<title>Saves and restores: how many times as long as the best one of the row</title>\n"
        f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def _head(action: str, name: str, column: int) -> str:
    x, y = _LEFT + column * _WIDTH + _WIDTH // 2, _TOP - 8
    ours = " ours" if name == "auto" else ""
    turned = f'x="{x}" y="{y}" transform="rotate(-{_SLANT} {x} {y})"'
    return f'<text class="label{ours}" {turned}>{escape(f"{action}, {name}")}</text>'


def _square(cell: Cell, measured: Measured, x: int, y: int) -> str:
    ratio = cell.ratio(measured)
    fill, ink = next((fill, ink) for limit, fill, ink in _SHADES if ratio <= limit)
    what = f"{cell.layout.name}, {cell.filesystem}: {measured.action}, {measured.way.name}"
    told = escape(f"{what}: {measured.seconds:.3f} s, {ratio:.2f} x the best")
    shown = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    ours = " ours" if measured.way.kind == "auto" else ""
    return (
        f'<g class="cell" data-what={quoteattr(what)}><title>{told}</title>'
        f'<rect class="square" x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" fill="{fill}"/>'
        f'<text class="number{ours}" x="{x + _WIDTH // 2}" y="{y + 17}" text-anchor="middle" '
        f'fill="{ink}">{shown}</text></g>'
    )


def _legend(y: int) -> list[str]:
    """Return what the colours mean."""
    parts = []
    for number, (limit, fill, ink) in enumerate(_SHADES):
        x = _LEFT + number * _KEY
        below = f"up to {limit:g}" if limit < math.inf else f"over {_SHADES[-2][0]:g}"
        rect = f'x="{x}" y="{y}" width="{_KEY}" height="{_HEIGHT}" fill="{fill}"'
        parts.append(f'<rect class="square" {rect}/>')
        place = f'x="{x + _KEY // 2}" y="{y + 17}" text-anchor="middle" fill="{ink}"'
        parts.append(f"<text {place}>{below}</text>")
    place = f'x="{_LEFT - 8}" y="{y + 17}" text-anchor="end"'
    return [*parts, f'<text class="label" {place}>times the best of the row</text>']
