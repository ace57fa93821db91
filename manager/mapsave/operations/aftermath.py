"""What became of the guest of a save that has failed, where that is not its former state."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from mapsave import errors, shielded
from mapsave.migration import run_states
from mapsave.migration.run_states import RunState
from mapsave.operations import ending, in_use
from mapsave.operations.save_transfer import SaveJob

# A QEMU that does not answer in this time is reported as such.
_ANSWER = 2.0
# Errors that say themselves what became of the guest.
_SAY_SO = (errors.GuestContinued, errors.GuestNotEnded, errors.GuestNotPutBack, errors.SaveQemuDied)
_GONE = "QEMU has exited since, and there is no image of the guest"


@dataclasses.dataclass
class Aftermath:
    """``words``: what became of the guest, where that is not what it was; None where it is."""

    words: str | None = None


@contextlib.asynccontextmanager
async def reported(job: SaveJob, aftermath: Aftermath) -> AsyncIterator[None]:
    """Have an error of a save say what became of the guest; for a cancellation ``aftermath`` does.

    Raises SaveQemuDied in place of an error that came before QEMU ended.
    """
    try:
        yield
    except asyncio.CancelledError:
        aftermath.words = await shielded.whole(_words(job))
        raise
    except errors.MapsaveError as error:
        if isinstance(error, _SAY_SO) or "image" in error.data:
            raise
        words = await shielded.whole(_words(job))
        if words is None:
            raise
        if words.startswith(_GONE):
            raise errors.SaveQemuDied(
                f"{error.message}; {words}", hint=in_use.hint_of_death(job.facts.lives_on)
            ) from None
        error.message += f"; {words}"
        raise


async def _words(job: SaveJob) -> str | None:
    """Return what became of the guest, as QEMU says now; None where it is as before."""
    if not job.is_begun:
        return None
    if job.stuck is not None:
        return job.stuck
    before = job.facts.run_state
    try:
        reply = await job.session.execute("query-status", timeout=_ANSWER)
    except errors.MonitorLost:
        if await ending.is_lost(job.facts.pid):
            return _GONE
        return "QEMU's monitor was lost: the guest may be paused"
    except errors.MonitorError:
        return "QEMU does not answer: the guest may be paused"
    state = str(reply["status"])
    if state == before:
        return None
    if state == RunState.POSTMIGRATE and not run_states.of(before).runs:
        return (
            "the guest is left paused, in QEMU's run state 'postmigrate': resume it ('cont' at its "
            f"monitor) before it can be saved again (it was {before!r})"
        )
    return f"the guest is in run state {state!r} (it was {before!r})"
