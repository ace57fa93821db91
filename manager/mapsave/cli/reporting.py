"""Show on standard error how far an operation is: a live line, a line now and then, or JSON."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from mapsave import strict_json
from mapsave.cli import output, progress_line
from mapsave.cli.options import Globals
from mapsave.cli.progress_line import Title
from mapsave.migration import progress
from mapsave.migration.progress import Progress, Report, Seldom

EVERY = 10.0  # seconds from one line to the next, where there is no terminal
_COLUMNS = 80


@contextlib.contextmanager
def reporting(given: Globals, verb: str, name: str = "") -> Iterator[Report]:
    """Yield a report about what is done, such as ``saving``, with what.

    It shows a live line on a terminal, elsewhere a line each ten seconds; with ``--progress json``
    each report as an object on a line of its own, and nothing with ``--quiet``.
    """
    title = Title(verb, output.printable(name))
    if given.quiet:
        yield progress.silent
    elif given.progress == "json":
        yield _as_json
    elif given.debug:
        yield progress.silent  # steps are logged
    elif sys.stderr.isatty():
        try:
            yield _Live(title)
        finally:
            _write(output.clear_line())
    else:
        yield Seldom(_Lines(title), EVERY)


def _as_json(now: Progress) -> None:
    _write(strict_json.dumps(now.as_dict()) + "\n")


class _Live:
    """One line that is written again and again; what is rolled back stays above it."""

    def __init__(self, title: Title) -> None:
        self._title = title
        self._phase = ""

    def __call__(self, now: Progress) -> None:
        if now.phase == progress.RESUME and self._phase != now.phase:
            output.note(progress_line.line(self._title, now))
        self._phase = now.phase
        line = progress_line.line(self._title, now, _width() - 1)
        _write(output.clear_line() + output.printable(line))


class _Lines:
    """A line every ``EVERY`` seconds, and one where a guest is resumed in a rollback."""

    def __init__(self, title: Title) -> None:
        self._title = title
        self._next = time.monotonic() + EVERY
        self._phase = ""

    def __call__(self, now: Progress) -> None:
        is_news = now.phase == progress.RESUME and self._phase != now.phase
        self._phase = now.phase
        if is_news or time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            output.note(progress_line.line(self._title, now))


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _width() -> int:
    """Return the columns of the terminal; without that, of the least that there are."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS
