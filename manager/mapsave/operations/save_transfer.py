"""Hand the pair over and let QEMU write the image; decide what it means where QEMU is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import blocking, errors, shielded, units
from mapsave.config import Then
from mapsave.image import descriptors, global_state, image, partial_names, store, syscalls
from mapsave.image.metadata import Metadata, PlanPart
from mapsave.image.working_set import WorkingSet
from mapsave.labels import labelling
from mapsave.labels.label import Problem
from mapsave.migration import device_states, guest_state, outgoing, parameters, run_states, stall
from mapsave.migration.pace import Pace, TooSlow
from mapsave.migration.progress import Phases
from mapsave.migration.run_states import RunState
from mapsave.monitor import fdset
from mapsave.monitor.session import Session
from mapsave.operations import ending, in_use, journal, kept, limits
from mapsave.operations.attach import Monitor
from mapsave.operations.facts import Facts
from mapsave.operations.managed_place import Managed
from mapsave.operations.save_request import Request
from mapsave.operations.shared_ram import SharedRam
from mapsave.operations.steps import Step
from mapsave.plan.strategy import Strategy

if TYPE_CHECKING:
    from mapsave.operations.provable import Means


@dataclasses.dataclass(frozen=True)
class GivenUp:
    """A strategy that was too slow: it would have taken ``seconds``."""

    strategy: Strategy
    seconds: float


@dataclasses.dataclass
class SaveJob:
    """One save under way: everything that preflight has settled."""

    guest: str
    session: Session
    monitor: Monitor
    directory: store.Directory
    name: str
    managed: Managed | None
    request: Request
    facts: Facts
    strategy: Strategy
    labelling: labelling.Labelling
    log: journal.Journal
    phases: Phases
    metadata: Metadata
    fdset: int
    resumes: guest_state.ResumeWatch
    state: Path
    touched: WorkingSet | None  # since its restore, of a guest that lives on an image
    shared_ram: SharedRam | None = None  # of which a checkpoint is taken
    is_begun: bool = False  # QEMU was asked to save
    stuck: str | None = None  # what became of a guest that cannot be resumed
    given_up: GivenUp | None = None  # what the save was begun with, and restarted
    unpolished: str | None = None  # what to say of an image that could not be polished
    means: Means | None = None  # of proving it, where that is asked for
    unproven: str | None = None  # what to say of an image that could not be proven
    rewritten: str | None = None  # and of a RAM file in very many extents

    @property
    def then(self) -> Then:
        """What becomes of the guest."""
        return self.request.then_for(runs=self.facts.runs)

    @property
    def live(self) -> bool:
        """Whether the guest runs on while QEMU writes."""
        return self.request.settings.live

    def plan_outcome(self) -> PlanPart | None:
        """Return what was predicted, and how it came out; None where nothing could be."""
        if self.strategy.plan is None:
            return None
        chosen = self.strategy.plan.chosen
        found: PlanPart = {
            "predicted_s": round(chosen.seconds, 6),
            "predicted_bytes": chosen.file_bytes,
            "took_s": round(self.took(), 6),
        }
        if self.given_up is not None:
            found["restarted"] = self.given_up.strategy.as_dict()
        return found

    def warnings(self) -> list[str]:
        """Return what the user should know of a save that was restarted or not polished."""
        said = (self.unpolished, self.unproven, self.rewritten)
        found = [each for each in said if each is not None]
        if self.given_up is None:
            return found
        slow = self.given_up
        return [
            *found,
            f"written {slow.strategy.way.text()}, the image would have taken "
            f"{units.format_duration(slow.seconds)}: the save was cancelled and restarted, "
            f"{self.strategy.way.text()}; 'mapsave probe' measures the directory again",
        ]

    def took(self) -> float:
        """Return the seconds that writing took, stable storage and polishing included."""
        phases = self.phases.seconds()
        return sum(phases.get(each, 0.0) for each in ("write", "sync", "polish"))

    def on_left(self, problems: Sequence[Problem]) -> bool:
        """Keep the journal where ``mapsave recover`` can take a label back; return whether so."""
        if found := any(problem.recoverable for problem in problems):
            self.log.unsettled()
        return found

    @property
    def path(self) -> str:
        """The image's path once it is committed."""
        return os.path.join(self.directory.path, self.name)

    @property
    def partial_path(self) -> str:
        """The image's path until then."""
        return os.path.join(self.directory.path, partial_names.partial_name(self.name))


def preallocate(job: SaveJob, partial: image.Partial) -> None:
    """Preallocate, where that is the strategy. Raises OSError only where it was asked for."""
    if not job.strategy.preallocate:
        return
    try:
        room = job.facts.memory.total + partial.block.stream_offset
        syscalls.preallocate(partial.fd, 0, room)
    except OSError:
        if job.request.settings.preallocate == "on":
            raise
        job.strategy = dataclasses.replace(job.strategy, preallocate=False)


async def let_qemu_write(
    job: SaveJob, partial: image.Partial, applied: labelling.Applied, paused: guest_state.Paused
) -> outgoing.Outcome | None:
    """Drive the migration; return its outcome, None where QEMU died after its stream was whole."""
    return await judged(job, partial, applied, paused, _attempts(job, partial, paused))


async def _attempts(
    job: SaveJob, partial: image.Partial, paused: guest_state.Paused
) -> outgoing.Outcome:
    try:
        pace = await blocking.within(blocking.ANSWER, _pace, job)
        return await _attempt(job, partial, paused, pace)
    except TooSlow as error:
        await _restart(job, partial, error.seconds)
        return await _attempt(job, partial, paused, None)


async def judged(
    job: SaveJob,
    partial: image.Partial,
    applied: labelling.Applied,
    paused: guest_state.Paused,
    work: Awaitable[outgoing.Outcome],
) -> outgoing.Outcome | None:
    """Return what ``work`` returns, or None where QEMU died after its stream was whole.

    Raises SaveFailed or one of its kin for what QEMU refuses or fails at.
    """
    try:
        return await work
    except errors.MonitorLost as error:
        await _check_loss(job, partial, applied, error)
        return None
    except errors.MonitorTimeout as error:
        paused.release()  # it would not answer `cont` either
        raise left_to_recover(job, partial, applied, error.message) from None
    except errors.KeptByQemu as error:
        kept.note(job.state, job.facts.process, error.message)
        raise errors.SaveKeptByQemu(
            f"{kept.in_full(error)}: its migration settings were left as they are, and mapsave "
            "will not save this QEMU process again",
            hint="restart the guest when convenient, and take no snapshot of it until then",
            **error.data,
        ) from None
    except errors.CommandRefused as error:
        labelling.raise_if_refused(error.desc, partial.fd, job.partial_path, job.facts.pid)
        raise errors.SaveFailed(f"{job.session.address}: {error.message}") from None
    except errors.SaveFailed as error:
        desc = str(error.data.get("qemu_error"))
        labelling.raise_if_refused(desc, partial.fd, job.partial_path, job.facts.pid)
        raise


async def _attempt(
    job: SaveJob, partial: image.Partial, paused: guest_state.Paused, pace: Pace | None
) -> outgoing.Outcome:
    paired = descriptors.paired(partial.fd, os.O_WRONLY, direct_io=job.strategy.direct_io)
    async with shielded.entered(paired) as pair:
        return await _transfer(job, partial, pair, paused, pace)


def _pace(job: SaveJob) -> Pace | None:
    """Return what the save's pace is judged by; None where it may not be restarted.

    Where a limit or another save slows it down it would be as slow in any way.
    """
    plan = job.strategy.plan
    if plan is None or plan.fallback is None or plan.chosen.way != job.strategy.way:
        return None
    if job.live or job.request.bandwidth or job.request.is_urgent:
        return None
    own = partial_names.partial_name(job.name)
    if any(
        partial_names.is_partial_name(name) and name != own for name in os.listdir(job.directory.fd)
    ):
        return None
    return Pace(plan.course, plan.fallback.seconds)


async def _restart(job: SaveJob, partial: image.Partial, seconds: float) -> None:
    """Prepare the plan's fallback: QEMU has let go of the image, and the guest is still paused."""
    job.given_up = GivenUp(job.strategy, seconds)
    job.strategy = job.strategy.fallen_back()
    job.metadata = {**job.metadata, "strategy": job.strategy.as_dict()}
    await blocking.within(blocking.ANSWER, partial.start_over, job.metadata)


def refused(job: SaveJob, fd: int, words: str) -> errors.LabelRefused:
    """Return the error for a file that a security module kept from QEMU, with QEMU's message."""
    return labelling.describe_refusal(words, fd, job.partial_path, job.facts.pid)


async def _transfer(
    job: SaveJob,
    partial: image.Partial,
    pair: descriptors.Pair,
    paused: guest_state.Paused,
    pace: Pace | None,
) -> outgoing.Outcome:
    offset = partial.block.stream_offset
    await job.log.step(Step.HAND_OVER)
    await check_state(job)
    fds = (pair.first, pair.second)
    dropped = functools.partial(refused, job, pair.first)
    wanted = job.strategy.parameters()
    # In this order: settings are restored only once QEMU has let go of its descriptors.
    async with (
        parameters.configured(job.session, job.facts.settings, wanted),
        fdset.handed_over(job.session, fds, job.fdset, dropped) as path,
    ):
        if job.facts.runs and not job.live and job.given_up is None:
            await job.log.step(Step.PAUSE)
            await job.session.pause()
            paused.since = time.monotonic()
        limits.recheck(job.facts.footprint, job.strategy.channels)
        await job.log.step(Step.MIGRATE)
        job.is_begun = True
        job.phases.enter("write")
        # A small guest is saved before the event of its being resumed could be seen.
        if not job.live and await guest_state.run_state(job.session) == RunState.RUNNING:
            raise outgoing.continued(job.session, "before QEMU began to save it")
        outcome = await outgoing.save(
            job.session, path, offset, job.phases, live=job.live, pace=pace
        )
        # The disk may fail to give it back: then the guest counts as what it was.
        with contextlib.suppress(OSError):
            ended_in = await blocking.within(blocking.ANSWER, global_state.read, partial.fd, offset)
            if ended_in is not None:
                paused.ended_in(ended_in)
        if job.live:
            paused.since = time.monotonic() - (outcome.downtime_ms or 0) / 1000
        await job.resumes.saved()
        await job.log.step(Step.COMPLETE)
        job.phases.enter("settle")
        return outcome


async def check_state(job: SaveJob) -> None:
    """Raise SaveFailed where the guest could not be brought back from after its save.

    Of a guest that does not run ``query-status`` does not report whether it is suspended to RAM
    besides; the states of its devices do, which QEMU writes for us into an unnamed file.
    """
    state = await guest_state.run_state(job.session)
    known = run_states.of(state)
    if known.refusal is None and not known.runs and await _is_suspended(job):
        known = run_states.of(RunState.SUSPENDED)
    if known.refusal is not None:
        raise errors.SaveFailed(
            f"the guest cannot be saved in run state {state!r}: {known.refusal}",
            hint=f"if it is paused, resume it; then {known.hint}" if known.hint else None,
            run_state=state,
        )


async def _is_suspended(job: SaveJob) -> bool:
    """Return whether a guest that does not run is suspended to RAM; False where QEMU can't say.

    QEMU truncates the file to nothing, so it cannot be the image.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            opened = shielded.entered(_unnamed(job))
            fd, writable = await stack.enter_async_context(opened)
        except OSError:
            return False  # the file system has no unnamed files
        dropped = functools.partial(refused, job, fd)
        if not await device_states.written(job.session, writable, job.fdset, dropped):
            return False
        found = await blocking.within(blocking.ANSWER, global_state.read, fd)
    return found is not None and found.was_suspended


@contextlib.contextmanager
def _unnamed(job: SaveJob) -> Iterator[tuple[int, int]]:
    """Make a file that QEMU may write, and yield it and a descriptor for that. Raises OSError."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        with job.labelling.creating(job.facts.pid):
            fd = os.open(".", flags, 0o600, dir_fd=job.directory.fd)
        stack.callback(os.close, fd)
        yield fd, stack.enter_context(descriptors.reopened(fd, os.O_WRONLY))


async def resume(
    job: SaveJob, partial: image.Partial, applied: labelling.Applied, paused: guest_state.Paused
) -> None:
    """Resume the guest before its image is committed.

    Where QEMU refuses or has died, the image is the way back: it is committed, and what became of
    the guest is reported after that. Raises SaveFailed where QEMU does not answer.
    """
    try:
        await paused.resume(job.session)
    except errors.MonitorTimeout as error:
        paused.release()
        raise left_to_recover(job, partial, applied, error.message) from None
    except (errors.CommandRefused, errors.MonitorLost):
        pass


def left_to_recover(
    job: SaveJob, partial: image.Partial, applied: labelling.Applied, message: str
) -> errors.SaveFailed:
    """Leave everything as it is for ``mapsave recover``, and return the error that says so."""
    partial.keep()
    applied.keep()
    job.log.unsettled()
    return errors.SaveFailed(
        message, hint="run 'mapsave recover': it completes the save or rolls it back"
    )


@contextlib.contextmanager
def kept_if_stuck(
    job: SaveJob, partial: image.Partial, applied: labelling.Applied, paused: guest_state.Paused
) -> Iterator[None]:
    """Keep the partial image of a guest that cannot be resumed: it is nowhere else."""
    try:
        yield
    except BaseException:
        if not paused.continues and not partial.has_its_name:
            left_to_recover(job, partial, applied, "")
            job.stuck = (
                "the guest suspended or stopped itself during the save, so QEMU could crash "
                "when it is resumed; it was left paused, and its image kept as "
                f"{job.partial_path!r}: 'mapsave recover' completes the save once the cause is "
                "gone"
            )
        raise


async def _check_loss(
    job: SaveJob, partial: image.Partial, applied: labelling.Applied, error: errors.MonitorLost
) -> None:
    """Return where a lost QEMU has exited with its stream whole, so that it can be committed."""
    found = job.facts
    if found.pid is not None and not await ending.ended(found.pid, ending.LOST_TIMEOUT):
        lives = f"{error.message}, although QEMU (pid {found.pid}) is still running"
        raise left_to_recover(job, partial, applied, lives)
    try:
        await blocking.within(stall.limit(job.facts.memory.total), partial.validate)
    except errors.InvalidImage:
        raise errors.SaveQemuDied(
            f"guest {job.guest!r}: QEMU exited during the save ({error.message})",
            hint=in_use.hint_of_death(found.lives_on),
        ) from None
