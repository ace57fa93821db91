"""Drive one QEMU through a save: ``migrate``, follow the events, cancel where told to."""

import asyncio
import contextlib
import time

import msgspec

from mapsave import errors, shielded, typed, units
from mapsave.migration import guest_state, progress
from mapsave.migration.pace import Pace, TooSlow
from mapsave.migration.progress import Phases
from mapsave.migration.run_states import RunState
from mapsave.migration.status import IDLE, OVER, Status
from mapsave.monitor.session import Event, Events, Session

# How often QEMU is asked for figures while nothing happens, in seconds.
_POLL = 0.25
_STARTING: frozenset[str] = frozenset((Status.SETUP, Status.ACTIVE))
_START_TIMEOUT = 1.0
_STEADY = 0.1
_UNDER_WAY = _STARTING | {Status.DEVICE}
# A guest that dirties its memory faster than the disk writes would be saved forever: after this
# many passes over its RAM it is paused, as it would have been at the end.
LIVE_PASSES = 8
# Seconds without a byte written after which a save is given up: its storage hangs. A disk's own
# time limits and retries fit into that (Linux: SCSI commands, 30 s, six tries).
STALL = 300.0
# Seconds for QEMU to end its channels; those that hang on storage do not end.
CANCEL_TIMEOUT = 60.0


class Ram(msgspec.Struct, frozen=True, rename="kebab"):
    """What ``query-migrate`` says of the guest's RAM (``MigrationStats``): bytes, pages, passes."""

    total: int = 0
    remaining: int = 0
    transferred: int = 0
    multifd_bytes: int = 0
    duplicate: int = 0
    normal: int = 0
    dirty_sync_count: int = 0


class Outcome(msgspec.Struct, frozen=True, rename="kebab"):
    """What ``query-migrate`` said (``MigrationInfo``): where a migration is, or how it came out."""

    status: str = Status.NONE
    error: str | None = msgspec.field(default=None, name="error-desc")
    ram: Ram = Ram()
    downtime_ms: int | None = msgspec.field(default=None, name="downtime")
    blocked_reasons: tuple[str, ...] = ()


async def query(session: Session, *, timeout: float | None = None) -> Outcome:
    """Return where QEMU's migration is. Raises as ``Session.execute`` does."""
    return typed.convert(await session.execute("query-migrate", timeout=timeout), Outcome)


async def save(
    session: Session,
    path: str,
    offset: int,
    phases: Phases,
    *,
    live: bool,
    pace: Pace | None = None,
) -> Outcome:
    """Save to ``path`` (a file or ``/dev/fdset/N``) from byte ``offset``; return the outcome.

    Returns once the guest may be resumed: in ``postmigrate``, unless another client has resumed it
    already. Cancelled, it cancels the migration and waits until QEMU has resumed the guest;
    likewise where another client resumes the guest, unless ``live``.

    Raises CommandRefused where QEMU refuses to start, SaveFailed where it fails later,
    SaveStalled, GuestContinued, MonitorLost, MonitorBroken; TooSlow where the save was cancelled
    for its ``pace``, the guest being as before.
    """
    with session.events("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME") as events:
        uri = f"file:{path},offset={offset:#x}"
        try:
            await session.execute("migrate", {"uri": uri})
            try:
                outcome = await _follow(session, events, phases, live=live, pace=pace)
            except TooSlow:
                # It may have come to its end in the meantime.
                outcome = await shielded.whole(cancel(session))
                if outcome.status == Status.CANCELLED:
                    raise
            if outcome.status == Status.COMPLETED:
                await guest_state.left(session, RunState.FINISH_MIGRATE)
        except (
            asyncio.CancelledError,
            errors.MonitorBroken,
            errors.GuestContinued,
            errors.SaveStalled,
        ):
            phases.enter(progress.CANCEL)
            with contextlib.suppress(errors.MonitorLost):
                await shielded.whole(cancel(session))
            raise
        except errors.MonitorTimeout:
            # QEMU may begin to save at any moment; its descriptors taken from it then, it dies.
            session.abandon()
            raise
    if outcome.status != Status.COMPLETED:
        raise errors.SaveFailed(
            f"{session.address}: QEMU reported the migration as {outcome.status}: "
            f"{outcome.error or 'no reason given'}",
            status=outcome.status,
            qemu_error=outcome.error,
        )
    return outcome


async def follow(session: Session, phases: Phases) -> Outcome:
    """Follow a save that QEMU is doing already (its manager died) until it has ended."""
    with session.events("MIGRATION", "MIGRATION_PASS", "STOP") as events:
        return await _follow(session, events, phases, live=False)


async def _follow(
    session: Session, events: Events, phases: Phases, *, live: bool, pace: Pace | None = None
) -> Outcome:
    """Wait for the end by events, asking for figures now and then; the last word is the query's."""
    outcome = await query(session)
    if outcome.status == Status.COMPLETED:  # before it could be looked at
        phases.progress(outcome.ram.total, outcome.ram.total)
    since = time.monotonic()
    while outcome.status not in OVER:
        event = await events.next(timeout=_POLL)
        if event is not None and _says_enough(event):
            continue
        before, outcome = outcome, await query(session)
        if _progress(before) != _progress(outcome):
            since = time.monotonic()
        elif time.monotonic() - since > STALL:
            raise errors.SaveStalled(
                f"{session.address}: QEMU has written nothing for {units.format_duration(STALL)}",
                hint="its storage hangs: check dmesg, and save to another directory",
            )
        # QEMU itself resumes a guest only after a save that has failed.
        resumed = event is not None and event.name == "RESUME"
        if resumed and not live and outcome.status in _UNDER_WAY:
            raise continued(session, "while it was being saved")
        done = outcome.ram.total - outcome.ram.remaining
        phases.progress(done, outcome.ram.total)
        if pace is not None and outcome.status == Status.ACTIVE:
            pace.look(done, outcome.ram.total)
        if live and outcome.ram.dirty_sync_count > LIVE_PASSES:
            await session.pause()
            live = False
    return outcome


def _says_enough(event: Event) -> bool:
    """Return whether nothing need be asked for an event: figures follow.

    Questions take QEMU and libvirt time that the writing of a small guest needs.
    """
    # A live save pauses the guest for its end.
    return event.name == "STOP" or event.data.get("status") in _UNDER_WAY


def _progress(outcome: Outcome) -> tuple[object, ...]:
    ram = outcome.ram
    written = (ram.transferred, ram.multifd_bytes, ram.duplicate, ram.normal)
    return (outcome.status, *written, ram.dirty_sync_count)


def continued(session: Session, when: str) -> errors.GuestContinued:
    """Return the error for a guest that another client resumed."""
    return errors.GuestContinued(
        f"{session.address}: another client resumed the guest {when}",
        hint="the guest is running; save it again, or with --live",
    )


async def _well_under_way(session: Session) -> None:
    """Wait until the channels have written for a while, or the save is over.

    QEMU 10.0 gives its bitmaps back as soon as it is cancelled, while a channel may be about to
    mark pages in them, and dies of that (``ram_save_cleanup`` comes before
    ``multifd_send_shutdown``): one cancel in ten within the first 20 ms, a few in a thousand later,
    when the channels are busy with the disk. A save without a byte after a second has nothing but
    zero pages so far.
    """
    now = time.monotonic()
    deadline, steady = now + _START_TIMEOUT, None
    while (now := time.monotonic()) < deadline:
        outcome = await query(session)
        if outcome.status not in _STARTING or (steady is not None and now >= steady):
            return
        if steady is None and outcome.ram.multifd_bytes:
            steady = now + _STEADY
        await asyncio.sleep(0.005)


async def cancel(session: Session) -> Outcome:
    """Cancel and wait until QEMU says so; the guest is then in the state it had before.

    Changing the channels in the meantime kills QEMU 10.0. Raises MonitorTimeout.
    """
    await _well_under_way(session)
    await session.execute("migrate_cancel")
    delay, deadline = 0.001, time.monotonic() + CANCEL_TIMEOUT
    while (outcome := await query(session)).status not in IDLE:
        if time.monotonic() > deadline:
            session.abandon()  # it holds the descriptors, and would not resume the guest either
            raise errors.MonitorTimeout(
                f"{session.address}: the save was cancelled, but is still {outcome.status} after "
                f"{units.format_duration(CANCEL_TIMEOUT)}: its storage hangs"
            )
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.2)
    return outcome
