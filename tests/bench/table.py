"""Tables in Markdown that read as tables."""

import os
from collections.abc import Sequence

HEAD = ("what", "mapsave", "peer", "ratio", "target", "met")
WIDTHS = (44, 9, 9, 6, 15, 3)


def line(row: Sequence[str], widths: Sequence[int] = WIDTHS) -> str:
    """Return a line of a table."""
    cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
    return f"| {' | '.join(cells)} |"


def head(row: Sequence[str] = HEAD, widths: Sequence[int] = WIDTHS) -> str:
    """Return the first two lines of a table."""
    return f"{line(row, widths)}\n{line(['-' * len(word) for word in row], widths)}"


def machine() -> str:
    """Return what the figures depend on: processors, and what else they do."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"{os.cpu_count()} processors, load {load} (last 1, 5 and 15 minutes)"
