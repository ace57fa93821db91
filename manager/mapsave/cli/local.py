"""Run an operation from the command line: signals and logs."""

import contextlib
import sys
from collections.abc import Coroutine
from typing import TypeVar

from mapsave.cli import interruption, output
from mapsave.cli.options import Globals

T = TypeVar("T")


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
