"""Layouts of guests' memory, for plans."""

from mapsave.plan.layout import PAGE, WINDOW, Layout

_TWO_GIB = (2 << 30) // PAGE


def half_zero(run: int, pages: int = _TWO_GIB) -> Layout:
    """Return the layout of a guest with runs of so many pages in turns full and zero."""
    if run >= WINDOW:
        return Layout(pages, ((1 << WINDOW) - 1, 0), "test")
    return Layout(pages, (sum(1 << at for at in range(WINDOW) if at // run % 2 == 0),), "test")
