"""How far an operation is, as people read it: a line that fits into a terminal of any width.

Bytes, percent and time left are always there. The name is shortened first, then the bar, the rate
and the phase are left out.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator

from mapsave import units
from mapsave.migration import progress
from mapsave.migration.progress import Progress

_BARS = (30, 10, 0)  # characters
_NAME = 8  # columns that a name is left at least, beside other parts
_LEAST = 3
_WORDS = {
    progress.CANCEL: "cancelling …",
    progress.RESUME: "resuming the guest …",
}


@dataclasses.dataclass(frozen=True)
class Title:
    """What is done, such as ``saving``, and with what: a name, which may be shortened."""

    verb: str
    name: str = ""


def words(phase: str) -> str:
    """Return a phase as people read it."""
    return _WORDS.get(phase, phase)


def line(title: Title, now: Progress, columns: int | None = None) -> str:
    """Return the line, of at most ``columns``; without that of any length, and without a bar."""
    return next(_fitting(title, now, columns))


def _fitting(title: Title, now: Progress, columns: int | None) -> Iterator[str]:
    """Yield the line in the forms that fit, the fullest first."""
    if not now.total_bytes:
        rows: list[tuple[str, ...]] = [(words(now.phase),)]
    else:
        figures, rate = _figures(now), f"{units.format_size(now.bytes_per_s)}/s"
        bars = _BARS if columns is not None else (0,)
        rows = [(now.phase, *_bar(now, length), figures, rate) for length in bars]
        rows += [(now.phase, figures), (figures,)]
    texts = [" ".join(filter(None, row)) for row in rows]
    if columns is None:
        yield f"{_head(title.verb, title.name)}: {texts[0]}"
        return
    for rest in texts:
        yield from _headed(title, rest, columns)
    for rest in texts[-2:]:
        yield from _headed(Title("", title.name or title.verb), rest, columns)
    yield _shortened(texts[-1], columns)


def _headed(title: Title, rest: str, columns: int) -> Iterator[str]:
    """Yield ``rest`` with as much of the title as fits, if that is enough of its name."""
    room = columns - width(f": {rest}") - (width(title.verb) + 1 if title.verb else 0)
    if not title.name:
        room, least = room + 1, 0
    else:
        least = min(width(title.name), _NAME if title.verb else _LEAST)
    if room >= least:
        yield f"{_head(title.verb, _shortened(title.name, room))}: {rest}"


def _head(verb: str, name: str) -> str:
    return " ".join(filter(None, (verb, name)))


def _figures(now: Progress) -> str:
    """Return bytes, percent and time left; done and total have the unit of the total."""
    total, unit = units.format_size(now.total_bytes).split(" ")
    done = units.in_unit(now.done_bytes, unit)
    percent = min(now.done_bytes * 100 // now.total_bytes, 100)
    left = "?" if now.eta_s is None else units.format_duration(now.eta_s)
    return f"{done}/{total} {unit} {percent}% {left} left"


def _bar(now: Progress, length: int) -> Iterator[str]:
    if length:
        done = min(now.done_bytes * length // now.total_bytes, length)
        yield f"[{'#' * done}{' ' * (length - done)}]"


def width(text: str) -> int:
    """Return how many columns a text takes: wide characters two (Unicode, annex 11)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _shortened(text: str, columns: int) -> str:
    """Return what of a text fits, with a sign where something is missing."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…" if columns > 0 else ""
