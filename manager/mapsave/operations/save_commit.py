"""Prove that what QEMU wrote is whole, and make it the image."""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterator

from mapsave import errors, shielded
from mapsave.image import bitmaps, syscalls
from mapsave.image.image import Partial
from mapsave.image.metadata import Metadata
from mapsave.image.validation import Contents
from mapsave.labels.labelling import Applied
from mapsave.migration import guest_state
from mapsave.migration.outgoing import Outcome
from mapsave.migration.run_states import RunState
from mapsave.operations import (
    check,
    disks,
    ending,
    journal,
    metadata,
    restored_notes,
    results,
    written,
)
from mapsave.operations.save_transfer import SaveJob
from mapsave.operations.steps import Step

# Runs of unwritten pages shorter than this keep their preallocated blocks: giving back single
# pages costs more calls than it frees room.
_WORTH_PUNCHING = 1 << 20
_GOES_ON = {"resume": "run on", "leave": "be left paused"}

_log = logging.getLogger(__name__)


async def compare(job: SaveJob, partial: Partial, outcome: Outcome) -> written.Written:
    """Compare the image with the RAM of a guest that is resumed next. Raises as ``prove`` does."""
    with _proving(job, outcome):
        contents = await shielded.in_thread(partial.validate)
        how = _how(job, contents, outcome)
        return await written.check(partial.fd, contents, how, job.session, job.facts.pid)


async def prove(
    job: SaveJob, partial: Partial, outcome: Outcome | None, before: written.Written | None
) -> tuple[Contents, written.Written]:
    """Bring the data to stable storage, read the structure back, and look for missing pages.

    ``before`` is what ``compare`` has found of a guest that has been resumed.

    Raises CommitFailed, with the guest to be resumed by the caller's contexts; SaveQemuDied.
    """
    job.phases.enter("sync")
    with _proving(job, outcome):
        await shielded.in_thread(partial.sync)
        job.phases.enter("validate")
        contents = await shielded.in_thread(partial.validate)
        if outcome is not None and outcome.ram.normal and not contents.data_bytes:
            raise errors.EmptyRam(
                f"QEMU wrote {outcome.ram.normal} pages, but every page bit is clear"
            )
        how = _how(job, contents, outcome)
        if before is not None:
            found = await shielded.in_thread(written.check_holes, partial.fd, contents, how, before)
        else:
            session = job.session if outcome is not None else None
            found = await written.check(partial.fd, contents, how, session, job.facts.pid)
        if job.strategy.preallocate:
            await shielded.in_thread(_trim, partial, contents)
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


@contextlib.contextmanager
def _proving(job: SaveJob, outcome: Outcome | None) -> Iterator[None]:
    """Turn what is wrong with the image into the error of the save."""
    try:
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


async def check_undisturbed(job: SaveJob, paused: guest_state.Paused) -> None:
    """Raise GuestContinued where another client has resumed the guest: its image would be stale.

    A guest that has ended without that is in the image, and nowhere else.
    """
    if job.then != "resume" and (state := await _disturbed(job)) is not None:
        paused.release()
        raise errors.GuestContinued(
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


async def _stale(job: SaveJob, partial: Partial, state: str) -> errors.GuestContinued:
    """Mark an image whose guest was resumed before it could be ended; return the error."""
    marked = "the image is marked, and 'mapsave restore' refuses it"
    warning = await shielded.in_thread(
        restored_notes.mark_stale, job.log.state, job.path, partial.block.uuid, partial.mark_stale
    )
    if warning is not None:
        marked = warning
    return errors.GuestContinued(
        f"{job.session.address}: another client has resumed the guest, now {state}, which was "
        f"left as it is; {job.path!r} is committed, but stale",
        hint=f"the guest's disks have changed since, so {marked}",
        image=job.path,
        run_state=state,
    )


def _trim(partial: Partial, contents: Contents) -> None:
    """Give back what was preallocated and not written: after the end, and long zero runs."""
    os.ftruncate(partial.fd, contents.stream.end)
    for block in contents.stream.blocks:
        for first, count in bitmaps.clear_runs(partial.fd, block):
            length = count * block.page_size
            if length >= _WORTH_PUNCHING:
                offset = block.pages_offset + first * block.page_size
                syscalls.punch_hole(partial.fd, offset, length)


async def _give_its_name(
    job: SaveJob, partial: Partial, applied: Applied, paused: guest_state.Paused, final: Metadata
) -> None:
    """Make it the image. Raises OSError, ImageExists with nothing done.

    Raises CommitFailed where the image has its name, but may not keep it after a crash: the
    guest stays paused then, and everything is left to ``mapsave recover``.
    """
    # No other save commits under this name as long as the partial image is there.
    check.only_own(job.directory, job.name, job.request.replace_only)
    try:
        await shielded.in_thread(
            functools.partial(partial.commit, final, replace=job.request.replace)
        )
    except OSError as error:
        if not partial.has_its_name:
            raise
        paused.release()
        applied.keep()
        job.log.unsettled()
        raise errors.CommitFailed(
            f"{job.path!r} was written, but the rename may not have reached stable storage: "
            f"{error.strerror}",
            hint="run 'mapsave recover' once the disk works again; it completes the save",
            image=job.path,
        ) from None


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
    known = job.metadata
    if job.then != "resume":
        recorded = await shielded.in_thread(disks.record, job.facts.pid, job.facts.drives)
        known = {**known, "disks": recorded}
    known = {**known, "plan": job.plan_outcome()}
    final = metadata.after(
        known,
        contents,
        applied.label,
        found,
        duration=job.phases.total,
        paused_at=time.time() - paused.seconds() if job.facts.runs else None,
    )
    await job.log.step_in_thread(Step.COMMIT)
    await _give_its_name(job, partial, applied, paused, final)
    # Nothing is undone any more, whatever fails: the guest must not run beside its image.
    if job.then != "resume":
        paused.release()
    try:
        await job.log.step_in_thread(Step.COMMITTED)
    except journal.JournalUnwritable as error:
        # `mapsave recover` knows the image by its uuid as well.
        job.log.warn("write", error)
    problems = applied.at_rest()
    is_left = job.on_left(problems)
    await _then(job, partial, paused)
    if is_left:
        # The guest is its user's from here on: `mapsave recover` leaves it alone.
        with contextlib.suppress(journal.JournalUnwritable):
            await job.log.step_in_thread(Step.TIDY)
    result = results.saved(job, partial, paused, applied.label, proven)
    result.warnings[:0] = [problem.text for problem in problems]
    return result
