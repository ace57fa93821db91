"""Run an operation from the command line: signals, logs and the progress of one save.

What only an operation in this process needs is imported by ``run``: the service's client, which
shows progress as well, does without.
"""

import contextlib
import os
import sys
from collections.abc import Coroutine, Iterator
from typing import TypeVar

from mapsave import units
from mapsave.cli import interruption, output
from mapsave.cli.options import Globals
from mapsave.migration import progress
from mapsave.migration.progress import Progress, Report

T = TypeVar("T")
_BAR = 30  # characters
_COLUMNS = 80


def run(work: Coroutine[object, object, T], given: Globals) -> T:
    """Run ``work`` to its end. Ctrl-C and SIGTERM cancel it once, and it undoes what it did.

    Raises Interrupted after that, or what ``work`` raises.
    """
    import asyncio
    import logging

    level = logging.DEBUG if given.debug else logging.WARNING
    form = f"{output.clear_line()}mapsave: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=form)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # Its errors are about connections that ended, which operations report themselves.
    logging.getLogger("qemu.qmp").setLevel(logging.DEBUG if given.debug else logging.CRITICAL)
    return asyncio.run(_cancellable(work, given.stop))


async def _cancellable(work: Coroutine[object, object, T], stop: interruption.Stop) -> T:
    import asyncio

    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    is_cancelled = False

    def cancel() -> None:
        nonlocal is_cancelled
        if not is_cancelled:
            is_cancelled = True
            task.cancel()

    def cancel_soon() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(cancel)

    with stop.cancels(cancel_soon):
        try:
            return await task
        except asyncio.CancelledError:
            raise interruption.undone(stop.name or "cancellation") from None


@contextlib.contextmanager
def reporting(given: Globals, title: str) -> Iterator[Report]:
    """Yield a report: one live line on a terminal, nothing elsewhere or with ``--quiet``."""
    if given.quiet or given.debug or not sys.stderr.isatty():
        yield progress.silent
        return

    def show(now: Progress) -> None:
        line = f"{title}: {now.phase}  {_bar(now)}{figures(now)}"
        _write(output.clear_line() + output.printable(line)[: _width() - 1])

    try:
        yield show
    finally:
        _write(output.clear_line())


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _width() -> int:
    """Return the columns of the terminal; without that, of the least that there are."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS


def _bar(now: Progress) -> str:
    """Return how much is done as a bar; empty where it is not known how much there is."""
    if not now.total_bytes:
        return ""
    done = min(now.done_bytes * _BAR // now.total_bytes, _BAR)
    return f"[{'#' * done}{' ' * (_BAR - done)}] "


def figures(now: Progress) -> str:
    """Return bytes, rate and time to go as people read them; empty where nothing is known."""
    if not now.total_bytes:
        return ""
    size, rate = units.format_size, units.format_size(now.rate)
    eta = "" if now.eta_s is None else f", {units.format_duration(now.eta_s)} left"
    return f"{size(now.done_bytes)} of {size(now.total_bytes)}, {rate}/s{eta}"
