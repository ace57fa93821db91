"""Let go of a destination that does not end its load: what undoes it would wait as well."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable

from mapsave import errors
from mapsave.monitor import process
from mapsave.operations.destination import Destination

# Seconds that a QEMU may take to answer once it is told to stop: it loads in its main loop.
_ANSWER_TIMEOUT = 1.0
# Seconds until the monitor of a killed QEMU is closed.
_LOST_TIMEOUT = 2.0


@contextlib.asynccontextmanager
async def given_up(target: Destination, on_left: Callable[[], None]) -> AsyncIterator[None]:
    """Give up the destination where the load in this context is cancelled, stalls or is unanswered.

    One that mapsave did not start is left alone unless it answers, and ``on_left`` is called.
    """
    try:
        yield
    except (asyncio.CancelledError, errors.RestoreStalled, errors.MonitorTimeout):
        if target.is_ours:
            kill(target)
            await target.session.wait_lost(_LOST_TIMEOUT)
        elif not await _answers(target):
            target.session.abandon()
            on_left()
        raise


def kill(target: Destination) -> None:
    """Kill a QEMU that mapsave started, with what else its command has started."""
    child = target.process
    if child is not None and child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # it leads a session of its own
    if target.identity is not None:
        process.kill(*target.identity)


async def _answers(target: Destination) -> bool:
    try:
        await target.session.execute("query-status", timeout=_ANSWER_TIMEOUT)
    except errors.MonitorError:
        return False
    return True


def stalled(target: Destination, error: errors.RestoreStalled) -> errors.RestoreStalled:
    """Return the error for a load that has stalled, with what has become of its QEMU."""
    found, pid = target.words(), target.session.pid
    words = f" ({found})" if found else ""
    if target.is_ours:
        what, hint = "it was killed, because mapsave had started it", error.hint
    else:
        which = f"kill QEMU (kill -9 {pid})" if pid is not None else "shut that QEMU down"
        what = "mapsave did not start it, so it was left as it is"
        hint = f"{which}, and start another with -incoming defer; {error.hint}"
    return errors.RestoreStalled(
        f"{target.session.address}: {error.message}{words}; {what}", hint=hint, **error.data
    )


async def how_ended(target: Destination) -> str:
    """Return how the process of a lost destination ended, and what it printed; empty if unknown."""
    await asyncio.sleep(0.05)  # its last output may still be on their way
    status = target.process.poll() if target.process is not None else None
    how = ""
    if status is not None and status < 0:
        names = {each.value: each.name for each in signal.Signals}
        how = f"killed by {names.get(-status, f'signal {-status}')}"
    elif status is not None:
        how = f"with exit status {status}"
    return ": ".join(part for part in (how, target.words()) if part)
