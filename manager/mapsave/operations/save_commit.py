"""Prove that what QEMU wrote is whole, and make it the image."""

import contextlib
import errno
import functools
import logging
import os
import time
import uuid as uuids
from collections.abc import AsyncIterator

from mapsave import blocking, errors, shielded
from mapsave.image import image
from mapsave.image.image import Partial
from mapsave.image.metadata import Metadata
from mapsave.image.validation import Contents
from mapsave.labels.label import Problem
from mapsave.labels.labelling import Applied
from mapsave.migration import guest_state, outgoing, stall
from mapsave.migration.outgoing import Outcome
from mapsave.migration.run_states import RunState
from mapsave.monitor import process
from mapsave.operations import (
    digesting,
    disks,
    ending,
    journal,
    managed_save,
    metadata,
    replacing,
    restored_notes,
    results,
    whereabouts,
    working_sets,
    written,
)
from mapsave.operations.save_transfer import SaveJob
from mapsave.operations.steps import Step

_GOES_ON = {"resume": "run on", "leave": "be left paused"}

_log = logging.getLogger(__name__)


async def compare(job: SaveJob, partial: Partial, outcome: Outcome) -> written.Written:
    """Compare the image with the RAM of a guest that is resumed next.

    Raises as ``read_back`` does.
    """
    async with reading_back(job, outcome, job.facts.memory.total):
        contents = await blocking.call(partial.validate)
        how = _how(job, contents, outcome)
        return await written.check(partial.fd, contents, how, job.session, job.facts.pid)


async def read_back(
    job: SaveJob, partial: Partial, outcome: Outcome | None, before: written.Written | None
) -> tuple[Contents, written.Written]:
    """Bring the data to stable storage, read the structure back, and look for missing pages.

    ``before`` is what ``compare`` has found of a guest that has been resumed.

    Raises CommitFailed, with the guest to be resumed by the caller's contexts; SaveQemuDied.
    """
    job.phases.enter("sync")
    async with reading_back(job, outcome, process.unwritten_bytes()):
        await blocking.call(partial.sync)
    job.phases.enter("validate")
    async with reading_back(job, outcome, job.facts.memory.total):
        contents = await blocking.call(partial.validate)
        if outcome is not None and outcome.ram.normal and not contents.data_bytes:
            raise errors.EmptyRam(
                f"QEMU wrote {outcome.ram.normal} pages, but every page bit is clear"
            )
        how = _how(job, contents, outcome)
        if before is not None:
            found = await blocking.call(written.check_holes, partial.fd, contents, how, before)
        else:
            session = job.session if outcome is not None else None
            found = await written.check(partial.fd, contents, how, session, job.facts.pid)
    for text in found.warnings():
        _log.warning("%s: %s", job.path, text)
    return contents, found


def _how(job: SaveJob, contents: Contents, outcome: Outcome | None) -> written.How:
    """Return how QEMU wrote the image; where it has died, a live save wrote any page again."""
    again = 0
    if job.live:
        again = outcome.ram.normal - sum(contents.used_pages) if outcome is not None else 1
    return written.How(
        zero_pages=job.strategy.zero_pages,
        direct_io=job.strategy.direct_io,
        rewritten=max(0, again),
        is_awaited=job.then == "resume",
    )


@contextlib.asynccontextmanager
async def reading_back(job: SaveJob, outcome: Outcome | None, size: int) -> AsyncIterator[None]:
    """Turn what is wrong with the image, or takes too long, into the error of the save.

    A guest must not wait for storage that hangs. What is called within is then left alone: it has
    to do with up to ``size`` bytes of an image that is given up.
    """
    try:
        async with blocking.limited(stall.limit(size)):
            yield
    except OSError as error:
        raise errors.CommitFailed(f"{job.partial_path!r}: {error.strerror}") from None
    except errors.InvalidImage as error:
        message = f"{job.partial_path!r}, read back: {error.message}"
        if outcome is None:
            raise errors.SaveQemuDied(
                f"QEMU exited after it had written its stream, and {message}",
                hint="see QEMU's log; mapsave did not stop it",
                found=error.as_dict(),
            ) from None
        raise errors.CommitFailed(message, hint=error.hint, found=error.as_dict()) from None


async def digest(job: SaveJob, partial: Partial, outcome: Outcome | None) -> None:
    """Take digests of the image's data before it is committed, where that is asked for.

    Where no thread can be had for that they stay to be taken. Raises as ``read_back`` does.
    """
    if job.request.settings.digests != "before" or not partial.block.digest_room:
        return
    job.phases.enter("digest")

    def take(watch: digesting.Watch) -> None:
        watch.begin(os.fstat(partial.fd).st_blocks * 512)
        partial.take_digests(watch.note)

    async with reading_back(job, outcome, job.facts.memory.total):
        with contextlib.suppress(blocking.NoThread):
            await digesting.watched(take, job.phases)


async def check_undisturbed(job: SaveJob, paused: guest_state.Paused) -> None:
    """Raise GuestContinued where another client has resumed the guest: its image would be stale.

    A guest that has ended without that is in the image, and nowhere else.
    """
    if job.then != "resume" and (state := await _disturbed(job)) is not None:
        paused.release()
        raise continued(job, state)


def continued(job: SaveJob, state: str) -> errors.GuestContinued:
    """Return the error for a guest that another client has resumed, in ``state`` now."""
    return errors.GuestContinued(
        f"{job.session.address}: another client resumed the guest, now {state}, before its "
        "image was committed; the image was removed",
        hint="the guest was left as it is; save it again",
        run_state=state,
    )


async def _disturbed(job: SaveJob) -> str | None:
    """Return the state of a guest that another client has resumed since; by events if silent."""
    state = "in an unknown state"
    try:
        state = await guest_state.run_state(job.session)
    except errors.MonitorLost:
        state = "ended"
    except errors.MonitorError:
        pass
    else:
        if state != RunState.POSTMIGRATE:
            return state
    return state if await job.resumes.seen() else None


async def _then(job: SaveJob, partial: Partial, paused: guest_state.Paused) -> None:
    """Do to the guest what was asked for, its image being committed.

    Raises GuestContinued with the guest left as it is, GuestNotEnded, SaveQemuDied, SaveFailed.
    """
    if job.then == "quit":
        job.phases.enter("quit")
    if job.then != "resume" and (state := await _disturbed(job)) is not None:
        raise await _stale(job, partial, state)
    if job.then == "quit":
        if await ending.end_guest(job.session):
            return
        job.log.unsettled()  # `mapsave recover` tries again
        raise errors.GuestNotEnded(
            f"{job.session.address}: {job.path!r} is committed, but the guest was not shut down",
            hint="it is paused; run 'mapsave recover' to shut it down",
            image=job.path,
        )
    if not paused.continues:
        raise errors.GuestNotPutBack(
            f"{job.session.address}: {job.path!r} is committed, but the guest suspended or "
            "stopped itself during the save: it was left paused, because QEMU could crash when "
            "it is resumed",
            hint="do not resume it: shut this QEMU down and restore the image",
            image=job.path,
        )
    try:
        await guest_state.run_state(job.session)
    except errors.MonitorLost as error:
        paused.release()
        raise await _lost(job, error) from None
    except errors.MonitorError as error:
        _log.warning(
            "%s: image committed, but QEMU did not report the guest's state: %s",
            job.session.address,
            error,
        )


async def _lost(job: SaveJob, error: errors.MonitorLost) -> errors.SaveFailed:
    pid = job.facts.pid
    if pid is not None and not await ending.ended(pid, ending.LOST_TIMEOUT):
        job.log.unsettled()
        return errors.SaveFailed(
            f"{error.message}, although QEMU (pid {pid}) is still running; {job.path!r} is "
            "committed",
            hint=f"run 'mapsave recover': it lets the guest {_GOES_ON[job.then]}",
            image=job.path,
        )
    return errors.SaveQemuDied(
        f"{error.message}, although the guest was to {_GOES_ON[job.then]}; {job.path!r} is "
        "committed",
        hint="see QEMU's log; 'mapsave restore' restores the guest as it was saved",
        image=job.path,
    )


def _mark_stale(path: str, uuid: uuids.UUID) -> None:
    """Mark the image as others do who may write its header now. Raises OSError."""
    try:
        with image.opened(path) as opened:
            if opened.block.uuid != uuid:
                raise OSError(errno.ESTALE, "another image has its name")
            opened.mark_stale()
    except errors.MapsaveError as error:
        raise OSError(errno.EACCES, error.message) from None


async def _stale(job: SaveJob, partial: Partial, state: str) -> errors.GuestContinued:
    """Mark an image whose guest was resumed before it could be ended; return the error."""
    marked = "the image is marked, and 'mapsave restore' refuses it"
    uuid = partial.block.uuid
    mark = functools.partial(_mark_stale, job.path, uuid)
    warning = await blocking.call(restored_notes.mark_stale, job.log.state, job.path, uuid, mark)
    if warning is not None:
        marked = warning
    path = job.path
    if job.managed is not None:
        try:
            await blocking.within(blocking.ANSWER, managed_save.set_aside, path)
            path = managed_save.stale(path)
        except OSError as error:
            marked += (
                f"; libvirt would restore it, for it cannot be renamed ({error.strerror}): remove "
                "it before the guest shuts down"
            )
    return errors.GuestContinued(
        f"{job.session.address}: another client has resumed the guest, now {state}, which was "
        f"left as it is; {path!r} is committed, but stale",
        hint=f"the guest's disks have changed since, so {marked}",
        image=path,
        run_state=state,
    )


def _check_name(job: SaveJob) -> None:
    """Raise Refused or one of its kin where what has the name must not be replaced."""
    if job.request.replace:
        replacing.check(job.log.state, job.directory, job.name, job.request, job.facts.process)


async def _give_its_name(
    job: SaveJob, partial: Partial, applied: Applied, paused: guest_state.Paused, final: Metadata
) -> None:
    """Make it the image. Raises OSError, ImageExists with nothing done.

    Raises CommitFailed where the image has its name, but may not keep it after a crash, or where it
    may get it yet: the guest stays paused then, and everything is left to ``mapsave recover``.
    """
    # No other save commits under this name as long as the partial image is there.
    await blocking.within(blocking.ANSWER, _check_name, job)
    commit = functools.partial(partial.commit, final, replace=job.request.replace)
    try:
        await blocking.within(outgoing.STALL, commit)
    except OSError as error:
        if not partial.has_its_name and not isinstance(error, blocking.Hangs):
            raise
        paused.release()
        partial.keep()
        applied.keep()
        job.log.unsettled()
        raise errors.CommitFailed(
            f"{job.path!r} was written, but the rename may not have reached stable storage: "
            f"{error.strerror}",
            hint="run 'mapsave recover' once the disk works again; it completes the save",
            image=job.path,
        ) from None


async def _label_for_rest(job: SaveJob, applied: Applied) -> list[Problem]:
    """Give the image its label for rest; return what went wrong."""
    try:
        return await blocking.within(blocking.ANSWER, applied.at_rest)
    except blocking.Hangs as error:
        return [Problem(f"the label of {job.path!r} may not be final: {error.strerror}", True)]


async def commit(
    job: SaveJob,
    partial: Partial,
    applied: Applied,
    paused: guest_state.Paused,
    proven: tuple[Contents, written.Written],
) -> results.SaveResult:
    """Make the image valid under its name; only then may the guest go. ``proven``: as proved."""
    contents, found = proven
    job.phases.enter("commit")
    known: Metadata = {**job.metadata}
    if job.then != "resume":
        with contextlib.suppress(blocking.Hangs):  # as where they cannot be looked at
            known["disks"] = await blocking.within(
                blocking.ANSWER, disks.record, job.facts.pid, job.facts.drives
            )
    known = {**known, "plan": job.plan_outcome()}
    final = metadata.after(
        known,
        contents,
        applied.label,
        found,
        duration=job.phases.total,
        paused_at=time.time() - paused.seconds() if job.facts.runs else None,
    )
    await job.log.step(Step.COMMIT)
    await _give_its_name(job, partial, applied, paused, final)
    # Nothing is undone any more, whatever fails: the guest must not run beside its image.
    if job.then != "resume":
        paused.release()
    try:
        noted = await shielded.in_time(_note_whereabouts, job, partial)
    except blocking.Hangs as error:
        noted = whereabouts.unrecorded(job.path, error)
    try:
        await job.log.step(Step.COMMITTED)
    except journal.JournalUnwritable as error:
        # `mapsave recover` knows the image by its uuid as well.
        job.log.warn("write", error)
    problems = await _label_for_rest(job, applied)
    is_left = job.on_left(problems)
    await _then(job, partial, paused)
    if is_left:
        # The guest is its user's from here on: `mapsave recover` leaves it alone.
        with contextlib.suppress(journal.JournalUnwritable):
            await job.log.step(Step.TIDY)
    result = results.saved(job, partial, paused, applied.label, proven)
    result.warnings[:0] = [problem.text for problem in problems]
    result.warnings += [noted] if noted is not None else []
    return result


def _note_whereabouts(job: SaveJob, partial: Partial) -> str | None:
    """Note that the guest is in the image now, or is not; return a warning where that failed."""
    domain = job.facts.domain
    note = whereabouts.Note(
        guest=job.guest,
        key=job.monitor.key,
        domain=domain.name if domain is not None else None,
        image=job.path,
        uuid=str(partial.block.uuid),
        time=whereabouts.began(job.metadata.get("started")),
        managed=job.managed is not None,
    )
    working_sets.pass_on(job.state, job.touched, partial.block.uuid)
    return whereabouts.committed(job.state, note, stays=job.then != "quit")
