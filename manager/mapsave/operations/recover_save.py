"""Recover an interrupted save: commit it where QEMU has finished, else put the guest back."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from mapsave import errors, shielded
from mapsave.image import descriptors, image, store
from mapsave.image.superblock import State
from mapsave.labels import recovery
from mapsave.labels.label import Label, Problem
from mapsave.migration import guest_state, outgoing, progress
from mapsave.monitor import process
from mapsave.operations import (
    attach,
    ending,
    journal,
    journal_facts,
    kept,
    locks,
    metadata,
    recover_image,
    written,
)

if TYPE_CHECKING:
    from mapsave.config import Config
    from mapsave.image.image import Partial
    from mapsave.image.validation import Contents
    from mapsave.monitor.session import Session
    from mapsave.operations.journal import Orphan
    from mapsave.operations.written import Written

COMMITTED = "image committed"
PUT_BACK = "save rolled back"
QEMU_ENDED = (
    "QEMU had exited before its stream was complete: nothing to commit, partial image removed"
)
HOST_WENT_DOWN = (
    "the host went down before the image was on stable storage: nothing to commit, "
    "partial image removed"
)
TAKEN_OVER = f"{COMMITTED}, but marked stale: the guest has been resumed since and was left running"
_STUCK = (
    "the guest suspended or stopped itself during the save, and QEMU could crash when it is resumed"
)
GONE_SINCE = f"{COMMITTED}, but no longer in its place; guest left as it is"


async def recover(config: Config, orphan: Orphan, problems: list[Problem], *, dry_run: bool) -> str:
    """Finish or undo the save; return what was done (or would be).

    What goes wrong with its label is added to ``problems``. What the save has left on the disk
    goes last, and when it cannot go yet the guest is not touched again.

    Raises Busy where the guest is in use, Unreachable where its QEMU lives but does not answer,
    BadDirectory where the image directory is gone (mount it, and try again).
    """
    found = orphan.facts
    who = f"guest {found['guest']!r}"
    monitor = attach.Monitor(**found["monitor"])
    with (
        locks.held(config.state, who, monitor.key),
        locks.process_held(config.state, who, _process(orphan)),
    ):
        if orphan.reached("tidy"):
            outcome = str(found.get("outcome", COMMITTED))
        else:
            outcome = await _finish_or_undo(config, orphan, monitor, problems, dry_run=dry_run)
            if not dry_run:
                # Where the disk is full, the partial image that fills it goes next.
                with contextlib.suppress(OSError):
                    journal.add(orphan, "tidy", outcome=outcome)
        if not dry_run:
            _tidy(config, orphan, outcome, problems)
        return outcome


async def _finish_or_undo(
    config: Config,
    orphan: Orphan,
    monitor: attach.Monitor,
    problems: list[Problem],
    *,
    dry_run: bool,
) -> str:
    if _may_live(orphan, monitor):
        async with contextlib.AsyncExitStack() as stack:
            session = await _session(orphan, monitor, stack)
            if session is not None:
                _check_identity(orphan, session)
                return await _with_qemu(config, orphan, session, problems, dry_run=dry_run)
    with store.directory(orphan.facts["directory"]) as held:
        return await _without_qemu(orphan, held, problems, dry_run=dry_run)


def _tidy(config: Config, orphan: Orphan, outcome: str, problems: list[Problem]) -> None:
    """Take AppArmor's rules out of QEMU's profile, and remove what is left of a partial image.

    Under the locks: a save that begins after them must not rely on a rule that we take out.
    Raises BadDirectory, NotPermitted.
    """
    directory = str(orphan.facts["directory"])
    if (label := _label(orphan)) is not None:
        # The image may be gone, or be another's: what is elsewhere is taken out all the same.
        problems += recovery.take_out(label, os.path.join(directory, orphan.facts["name"]))
    if outcome.startswith(COMMITTED):
        return
    try:
        with store.directory(directory) as held:
            _remove(config, orphan, held)
    except (errors.BadDirectory, errors.NotPermitted) as error:
        error.message = (
            f"{outcome}, but its partial image could not be removed yet: {error.message}"
        )
        error.hint = "mount it, then recover again"
        raise


def _process(orphan: Orphan) -> tuple[int, int] | None:
    pid, started = orphan.facts.get("pid"), orphan.facts.get("process_started")
    return (int(pid), int(started)) if pid is not None and started is not None else None


def _may_live(orphan: Orphan, monitor: attach.Monitor) -> bool:
    if not orphan.is_of_this_boot:
        return False
    found = _process(orphan)
    if found is not None:
        return process.alive(*found)
    # Behind a proxy or in another pid namespace: the monitor has to report it.
    return monitor.socket is None or os.path.exists(monitor.socket)


async def _session(
    orphan: Orphan, monitor: attach.Monitor, stack: contextlib.AsyncExitStack
) -> Session | None:
    """Connect to the guest; None where libvirt says that it runs no more. Raises Unreachable."""
    try:
        return await stack.enter_async_context(monitor.connected())
    except (errors.WrongRunState, errors.UnknownGuest) as error:
        if _process(orphan) is None:
            return None
        raise errors.Unreachable(
            f"{error.message}, although its QEMU (pid {orphan.facts['pid']}) is still running",
            hint="start libvirtd again, or shut that QEMU down",
        ) from None


def _check_identity(orphan: Orphan, session: Session) -> None:
    """Raise Unreachable where another QEMU than the saved one answers at its socket."""
    pid = orphan.facts.get("pid")
    if pid is not None and session.pid is not None and session.pid != pid:
        raise errors.Unreachable(
            f"{session.address}: QEMU (pid {pid}), which was being saved, is still running, but "
            f"another one (pid {session.pid}) listens there",
            hint=f"resume the guest of pid {pid} at another of its monitors, or shut it down",
        )


async def _with_qemu(
    config: Config,
    orphan: Orphan,
    session: Session,
    problems: list[Problem],
    *,
    dry_run: bool,
) -> str:
    complete = await _complete(orphan, session, dry_run=dry_run)
    if dry_run:
        return f"would be: {COMMITTED if complete else PUT_BACK}"
    if orphan.may_have_reached("hand-over"):
        warning = await kept.taken_back(config.state, session, orphan)
        if warning is not None:
            problems.append(Problem(warning, recoverable=False))
            # As a save does: no image is made of a file that QEMU still has open.
            complete = complete and (
                orphan.reached("commit") or recover_image.is_committed_somewhere(orphan)
            )
    if not complete:
        # First of all: the guest must not wait for an image directory that is gone.
        await _put_back(orphan, session)
        return PUT_BACK
    try:
        with store.directory(orphan.facts["directory"]) as held:
            if recover_image.is_gone(orphan, held):
                return GONE_SINCE  # it may be restored elsewhere: two guests must not run
            await _commit(orphan, held, problems, session)
    except (errors.BadDirectory, errors.NotPermitted) as error:
        error.hint = (
            f"mount {orphan.facts['directory']!r}, then run 'mapsave recover', which commits "
            "the image; the guest is paused until then. If the image is lost: resume the guest "
            "with 'cont' at its monitor, then recover"
        )
        raise
    except (errors.InvalidImage, OSError) as error:
        await _put_back(orphan, session)
        return f"{PUT_BACK}: QEMU had finished, but the image is invalid: {error}"
    outcome = await _then(orphan, session, problems)
    if outcome == TAKEN_OVER:
        recover_image.mark_stale(config, orphan, problems)
    return outcome


async def _complete(orphan: Orphan, session: Session, *, dry_run: bool) -> bool:
    """Return whether QEMU has written this save whole, waiting for one that is under way.

    ``completed`` alone may be of an earlier save; but only the guest of a finished save is in
    ``postmigrate``, and one that the dead manager had let run on has a journal that says so.
    """
    if recover_image.is_committed_somewhere(orphan):
        return True  # whatever the journal says: it may be damaged, or a step be missing
    if not orphan.may_have_reached("migrate"):
        return False
    if orphan.reached("committed") or orphan.reached("resume"):
        return True
    outcome = await outgoing.query(session)
    if dry_run and outcome.status not in ("completed", "failed", "cancelled", "none"):
        return True
    if outcome.status not in ("none", "completed"):
        outcome = await outgoing.follow(session, progress.Phases())
    if outcome.status != "completed":
        return False
    return await guest_state.left(session, "finish-migrate") == "postmigrate"


async def _put_back(orphan: Orphan, session: Session) -> None:
    """Let a guest that was running run again, unless it was not the save that paused it."""
    if not orphan.may_have_reached("pause") and not orphan.reached("migrate"):
        return
    state = await guest_state.run_state(session)
    if state == "postmigrate" and not recover_image.continues(orphan):
        raise errors.GuestNotPutBack(
            f"{session.address}: {_STUCK}, and its image is invalid",
            hint="fix the image directory, then recover again: nothing is lost as long as that "
            "QEMU is running",
            run_state=state,
        )
    async with guest_state.put_back_at_end(
        session, was_running=bool(orphan.facts["was_running"])
    ) as paused:
        if state == "running":
            paused.release()


async def _then(orphan: Orphan, session: Session, problems: list[Problem]) -> str:
    """Do what was to be done after the commit; return the outcome.

    Only a guest that has not run since its save is in ``postmigrate``. One in another state was
    resumed, or paused, by hand: its disks have moved on, and the image does not hold it.
    """
    then = orphan.facts["then"]
    if await guest_state.run_state(session) != "postmigrate":
        return TAKEN_OVER if then == "quit" else COMMITTED
    if then == "quit" and not await ending.end_guest(session):
        raise errors.GuestNotEnded(
            f"{session.address}: {COMMITTED}, but the guest was not shut down",
            hint="it is paused; run 'mapsave recover' again to shut it down",
        )
    if then != "quit" and not recover_image.continues(orphan):
        words = f"{_STUCK}: do not resume it; shut that QEMU down and restore the image"
        problems.append(Problem(words, recoverable=False))
    elif then == "resume":
        await session.resume()
    return COMMITTED


async def _without_qemu(
    orphan: Orphan, held: store.Directory, problems: list[Problem], *, dry_run: bool
) -> str:
    """QEMU is gone; what it wrote is whole, or it is not.

    What was not synced yet when the host went down may lack pages though its structure is whole:
    only from the step ``commit`` on it is synced.
    """
    if recover_image.is_committed(orphan, held):
        if not dry_run:
            await _commit(orphan, held, problems)
        return COMMITTED
    if orphan.reached("committed") and not recover_image.has_partial(orphan, held):
        return GONE_SINCE
    outcome = QEMU_ENDED if orphan.is_of_this_boot else HOST_WENT_DOWN
    whole = orphan.is_of_this_boot or orphan.reached("commit")
    try:
        with recover_image.adopted(orphan, held) as partial:
            # Its superblock says so only once all before it was synced.
            whole = whole or partial.block.state is not State.PARTIAL
            await _check(orphan, partial, None)
    except errors.PagesMissing as error:
        return f"QEMU had exited, and {error.message}: partial image removed"
    except (FileNotFoundError, errors.InvalidImage):
        whole = False  # any other error of the disk may pass: the image may be all that is left
    if not whole:
        return outcome
    if not dry_run:
        await _commit(orphan, held, problems)
    return f"{COMMITTED} (QEMU had finished before it exited)"


async def _check(
    orphan: Orphan, partial: Partial, session: Session | None
) -> tuple[Contents, Written]:
    """Validate the partial image, and look for pages that are missing in it.

    Raises InvalidImage, OSError.
    """
    await shielded.in_thread(partial.sync)
    contents = await shielded.in_thread(partial.validate)
    how = written.How.recorded(partial.metadata())
    pid = orphan.facts.get("pid")
    return contents, await written.check(partial.fd, contents, how, session, pid)


async def _commit(
    orphan: Orphan,
    held: store.Directory,
    problems: list[Problem],
    session: Session | None = None,
) -> None:
    """Commit the partial image, or find that it was; ``session`` is of a guest that lives.

    Raises InvalidImage, OSError with nothing done; CommitFailed where the image has its name, so
    that the guest must not run: what is uncertain is finished at the next try.
    """
    if recover_image.is_committed(orphan, held):
        with recover_image.has_its_name(orphan):
            with descriptors.opened(held.fd, str(orphan.facts["name"]), os.O_RDWR) as fd:
                _settle_label(orphan, held, fd, problems)
            os.fsync(held.fd)  # it may have died between rename and fsync
        return
    with recover_image.adopted(orphan, held) as partial:
        contents, found = await _check(orphan, partial, session)
        label = _label(orphan)
        known = partial.metadata()
        paused_at = _paused_at(orphan)
        final = metadata.after(known, contents, label, found, duration=0.0, paused_at=paused_at)
        try:
            partial.commit({**final, "recovered": True}, replace=bool(orphan.facts["replace"]))
        except OSError:
            if not partial.has_its_name:
                raise
            with recover_image.has_its_name(orphan):
                raise
        _settle_label(orphan, held, partial.fd, problems)


def _paused_at(orphan: Orphan) -> float | None:
    return os.stat(orphan.path).st_mtime if orphan.facts["was_running"] else None


def _label(orphan: Orphan) -> Label | None:
    data = orphan.facts.get("label")
    return Label.from_dict(data) if data else None


def _remove(config: Config, orphan: Orphan, held: store.Directory) -> None:
    """Delete the partial file.

    One of that name that another save made is left alone.
    """
    name = str(orphan.facts["name"])
    try:
        with image.adopting(held.fd, name) as partial:
            found = partial.block.uuid
            ours = str(found) == orphan.facts.get("uuid")
            if not ours and (orphan.reached("label") or journal_facts.claimed(config.state, found)):
                return
            partial.remove()
    except errors.Busy:
        return  # ours has no owner any more
    except FileNotFoundError:
        return
    except errors.InvalidImage:
        # Without a superblock no one can have come as far as to use it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(image.partial_name(name), dir_fd=held.fd)


def _settle_label(orphan: Orphan, held: store.Directory, fd: int, problems: list[Problem]) -> None:
    if (label := _label(orphan)) is not None:
        path = os.path.join(held.path, str(orphan.facts["name"]))
        problems += recovery.settle(fd, path, label)
