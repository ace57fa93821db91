"""The parts that all pictures share: the document, its colours, text.

Colours are classes, so that the reader's preference for a light or a dark ground decides them, and
each shade of a colour differs from its neighbours in lightness too.
"""

import dataclasses
import html
from collections.abc import Iterable, Sequence

MARGIN = 24  # pixels around a picture
LINE = 18  # pixels from one line of text to the next

# From few to many: on light ground, and on dark.
_RAMPS = {
    "used": (
        ("#a5c8f3", "#68a3e6", "#2a72c4", "#083f83"),
        ("#1f4a7a", "#2f74bd", "#5aa5ee", "#b5d8ff"),
    ),
    "shared": (
        ("#f8c987", "#f0a040", "#c96c06", "#834000"),
        ("#4f3410", "#8a5a12", "#d18e2b", "#ffcf8a"),
    ),
    "differs": (
        ("#f5b5bd", "#e97786", "#cc3750", "#8a1029"),
        ("#55202b", "#8f2f42", "#d65a70", "#ffb3bf"),
    ),
}
LEVELS = 4
_LIGHT = {"ground": "#ffffff", "label": "#1f2328", "faint": "#59636e", "zero": "#eceff2"}
_DARK = {"ground": "#0d1117", "label": "#e6edf3", "faint": "#9198a1", "zero": "#262c36"}


def _colours(number: int) -> list[str]:
    """Return the rules of a ground: the first is the light one."""
    plain = (_LIGHT, _DARK)[number]
    rules = [f".{name} {{ fill: {colour}; stroke: none; }}" for name, colour in plain.items()]
    rules += [f".beyond {{ stroke: {plain['ground']}; }}"]
    rules += [f".axis {{ stroke: {plain['faint']}; stroke-width: 1; fill: none; }}"]
    for name, ramps in _RAMPS.items():
        for level, colour in enumerate(ramps[number], 1):
            rules.append(f".{name}{level} {{ fill: {colour}; stroke: {colour}; }}")
    return rules


_STYLE = "\n".join(
    [
        "text { font: 13px system-ui, sans-serif; }",
        ".title { font-size: 17px; font-weight: 600; }",
        ".cells path { fill: none; }",
        *_colours(0),
        "@media (prefers-color-scheme: dark) {",
        *_colours(1),
        "}",
    ]
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a picture: what it draws from its own corner on, and its size in pixels."""

    body: str
    width: float
    height: float


def document(title: str, lines: Sequence[str], parts: Iterable[Part]) -> str:
    """Return a picture: its title, lines of text, and parts from top to bottom."""
    y = MARGIN + LINE
    body = [text(MARGIN, y, title, kind="label title")]
    for line in lines:
        y += LINE
        body.append(text(MARGIN, y, line, kind="faint"))
    width = max(480.0, 8.0 * max(map(len, (title, *lines))))
    y += LINE
    for part in parts:
        body.append(moved(MARGIN, y, part.body))
        y += round(part.height) + LINE
        width = max(width, part.width)
    size = (round(width) + 2 * MARGIN, y - LINE + MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" role="img">\n'
        f"<title>{_said(title)}</title>\n<desc>{_said('; '.join(lines))}</desc>\n"
        f'<style>\n{_STYLE}\n</style>\n<rect class="ground" width="100%" height="100%"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def moved(x: float, y: float, body: str) -> str:
    """Return ``body`` with its corner at x, y."""
    return f'<g transform="translate({number(x)} {number(y)})">\n{body}\n</g>'


def text(x: float, y: float, words: str, *, kind: str = "label", anchor: str = "") -> str:
    """Return a line of text; ``anchor`` is ``middle`` or ``end`` where x is not its beginning."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    place = f'x="{number(x)}" y="{number(y)}"'
    return f'<text class="{kind}" {place}{where}>{_said(words)}</text>'


def rect(x: float, y: float, width: float, height: float, *, kind: str, said: str = "") -> str:
    """Return a rectangle; ``said`` is shown by the pointer."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    if not said:
        return f'<rect class="{kind}" {place}/>'
    return f'<rect class="{kind}" {place}><title>{_said(said)}</title></rect>'


def attribute(value: str) -> str:
    """Return a value of an attribute, in quotation marks."""
    return f'"{_said(value)}"'


def number(value: float) -> str:
    """Return a coordinate, to the tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def legend(entries: Sequence[tuple[str, str]]) -> Part:
    """Return what colours mean: their classes, and words."""
    body, x = [], 0.0
    for kind, words in entries:
        body.append(rect(x, 0, 14, 14, kind=kind))
        body.append(text(x + 20, 12, words))
        x += 20 + 7.5 * len(words) + 16
    return Part("\n".join(body), x, 16)


def _said(words: str) -> str:
    """Return text as XML may hold it: names of guests may have control characters."""
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in words))
