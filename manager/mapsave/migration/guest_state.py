"""The run state of a guest: queried, paused, and restored."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from mapsave import errors, shielded
from mapsave.image.global_state import GlobalState
from mapsave.migration import progress, run_states
from mapsave.migration.progress import Phases
from mapsave.migration.run_states import RunState
from mapsave.migration.status import Status
from mapsave.monitor.session import Events, Session

_SETTLE_TIMEOUT = 60.0
# The states in which a save leaves a guest that was running.
_CONTINUED = frozenset((RunState.PAUSED, RunState.POSTMIGRATE, RunState.PRELAUNCH))


async def run_state(session: Session) -> str:
    """Return the run state's name (``qapi/run-state.json``): running, paused, prelaunch, …"""
    return str((await session.execute("query-status"))["status"])


async def left(session: Session, state: str) -> str:
    """Wait until the guest has left the run state ``state``; return the one it has then.

    ``completed`` is seen in finish-migrate already, in which QEMU refuses to resume the guest.
    Raises MonitorTimeout after a minute.
    """
    delay, deadline = 0.001, time.monotonic() + _SETTLE_TIMEOUT
    while (found := await run_state(session)) == state:
        if time.monotonic() > deadline:
            raise errors.MonitorTimeout(f"{session.address}: the guest remains {state}")
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.1)
    return found


class ResumeWatch:
    """Notes whether a guest is resumed after its save, from QEMU's events.

    Not from its run state: it may have been resumed and stopped again, or ended.
    """

    def __init__(self, events: Events) -> None:
        """Read ``events``: ``MIGRATION`` and ``RESUME``, listened to from before the save."""
        self._events = events
        self._is_saved = self._seen = False

    async def saved(self) -> None:
        """Take the guest for saved, also where the event that says so got lost."""
        await self._read()
        self._is_saved = True

    async def seen(self) -> bool:
        """Return whether the guest was resumed since QEMU had saved it."""
        await self._read()
        return self._seen

    async def restart(self) -> None:
        """Forget what was seen: the guest is paused and saved once more."""
        await self._read()
        self._is_saved = self._seen = False

    async def _read(self) -> None:
        with contextlib.suppress(errors.MonitorLost):
            while (event := await self._events.next(timeout=0)) is not None:
                if event.name == "RESUME":
                    # QEMU refuses `cont` from the guest's last stop to this event
                    # (10.0, monitor/qmp-cmds.c), so an earlier one is still in the image.
                    self._seen = self._seen or self._is_saved
                elif event.data.get("status") == Status.COMPLETED:
                    self._is_saved = True


class Paused:
    """Whether a guest that was running runs again at the end of ``paused``."""

    def __init__(self, was_running: bool) -> None:
        self.was_running = was_running
        self.since = time.monotonic()
        self.until: float | None = None
        # Whether `cont` brings the guest back; not if it stopped running by itself while saved.
        self.continues = True
        self._released = False
        self._earlier = 0.0

    def seconds(self) -> float:
        """Return for how long the guest has not run, up to now or until it was resumed."""
        return self._earlier + (self.until or time.monotonic()) - self.since

    def again(self) -> None:
        """Count on: a guest that was resumed is paused once more."""
        self._earlier, self.until, self._released = self.seconds(), None, False

    def ended_in(self, found: GlobalState) -> None:
        """Note the state that the guest had at the end of the stream."""
        known = run_states.of(found.run_state)
        self.continues = known.continues and not found.was_suspended

    def release(self) -> None:
        """Leave the guest as it is at the end: the save has succeeded."""
        self._released = True

    async def resume(self, session: Session) -> None:
        """Continue the guest now, once; it stays so at the end."""
        await session.resume()
        self.until = time.monotonic()
        self._released = True

    async def put_back(self, session: Session, phases: Phases) -> None:
        """Continue a guest that was running, unless released, or stopped by itself since.

        Raises GuestNotPutBack where QEMU refuses, or does not answer.
        """
        if self._released or not self.was_running or not self.continues:
            return
        try:
            if await left(session, RunState.FINISH_MIGRATE) in _CONTINUED:
                phases.enter(progress.RESUME)
                await session.resume()
        except errors.CommandRefused as error:
            raise errors.GuestNotPutBack(
                f"{session.address}: QEMU would not resume the guest: {error.desc}",
                hint="the guest is paused, not lost: resume it with 'cont' at its monitor",
                run_state=await run_state(session),
            ) from None
        except errors.MonitorTimeout as error:
            raise errors.GuestNotPutBack(
                f"{error.message}: the guest may still be paused",
                hint="run 'mapsave recover': it resumes the guest",
            ) from None


@contextlib.asynccontextmanager
async def put_back_at_end(
    session: Session, *, was_running: bool, phases: Phases | None = None
) -> AsyncIterator[Paused]:
    """Put the guest back into its run state on every way out, unless released.

    That is a phase of its own. Pausing is the caller's. Raises GuestNotPutBack.
    """
    state = Paused(was_running)
    try:
        yield state
    finally:
        # A QEMU that is gone cannot be resumed; the code that lost it reports so.
        with contextlib.suppress(errors.MonitorLost):
            await shielded.whole(state.put_back(session, phases or Phases()))
