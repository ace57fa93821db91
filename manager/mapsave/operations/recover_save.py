"""Recover an interrupted save: commit it where QEMU has finished, else put the guest back."""

import contextlib
import functools
import os

from mapsave import blocking, errors, shielded
from mapsave.image import descriptors, image, partial_names, store
from mapsave.image.superblock import State
from mapsave.image.validation import Contents
from mapsave.labels import recovery
from mapsave.migration import guest_state, outgoing, progress, stall
from mapsave.migration.run_states import RunState
from mapsave.migration.status import IDLE, Status
from mapsave.monitor import process
from mapsave.monitor.session import Session
from mapsave.operations import (
    disks,
    drives,
    ending,
    journal_facts,
    kept,
    locks,
    metadata,
    recover_image,
    written,
)
from mapsave.operations.begun import SaveBegun
from mapsave.operations.interrupted import Interrupted
from mapsave.operations.steps import Step

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
TAKEN_BY_LIBVIRT = f"{COMMITTED}, and restored or removed by libvirt since; guest left as it is"
_LEFT = "its partial image could not be removed yet"
_NOT_PERMITTED = "QEMU had finished, but mapsave may not open the image, or give it its name"


async def recover(save: Interrupted[SaveBegun]) -> str:
    """Finish or undo the save; return what was done (or would be).

    What is on the disk goes last; when it cannot go yet the guest is not touched again.

    Raises Busy where the guest is in use, Unreachable where its QEMU lives but does not answer,
    BadDirectory where the image directory is gone (mount it, and try again).
    """
    state, begun = save.config.state, save.begun
    who = f"guest {begun.guest!r}"
    with (
        locks.held(state, who, begun.monitor.key),
        locks.process_held(state, who, save.process),
    ):
        outcome = await save.outcome(lambda: _finish_or_undo(save), COMMITTED)
        if not save.dry_run:
            await _tidy(save, outcome)
        return outcome


async def _finish_or_undo(save: Interrupted[SaveBegun]) -> str:
    if _may_live(save):
        async with contextlib.AsyncExitStack() as stack:
            session = await _session(save, stack)
            if session is not None:
                _check_identity(save.begun, session)
                return await _with_qemu(save, session)
    async with recover_image.directory(save) as held:
        return await _without_qemu(save, held)


async def _tidy(save: Interrupted[SaveBegun], outcome: str) -> None:
    """Take AppArmor's rules out of QEMU's profile, and remove what is left of a partial image.

    Under the locks: a save that begins after them must not rely on a rule that we take out.
    """
    if save.begun.label is not None:
        # The image may be gone, or be another's: what is elsewhere is taken out all the same.
        save.problems.extend(recovery.take_out(save.begun.label, save.begun.image))
    if outcome.startswith(COMMITTED):
        return
    try:
        async with recover_image.directory(save) as held:
            _remove(save, held)
    except (errors.BadDirectory, errors.NotPermitted) as error:
        error.message = f"{outcome}, but {_LEFT}: {error.message}"
        first = "mount it" if isinstance(error, errors.BadDirectory) else error.hint
        error.hint = f"{first}; then recover again"
        raise
    except OSError as error:
        raise errors.of_os_error(
            error,
            f"{outcome}, but {_LEFT}: {error.filename!r}: {error.strerror}",
            error.filename,
            os.R_OK | os.W_OK,
            otherwise=errors.SaveFailed,
            hint="fix that, then recover again",
        ) from None


def _may_live(save: Interrupted[SaveBegun]) -> bool:
    if not save.orphan.is_of_this_boot:
        return False
    if save.process is not None:
        return process.alive(*save.process)
    # Behind a proxy or in another pid namespace: the monitor has to report it.
    socket = save.begun.monitor.socket
    return socket is None or os.path.exists(socket)


async def _session(
    save: Interrupted[SaveBegun], stack: contextlib.AsyncExitStack
) -> Session | None:
    """Connect to the guest; None where libvirt says that it runs no more. Raises Unreachable."""
    try:
        return await stack.enter_async_context(save.begun.monitor.connected())
    except (errors.WrongRunState, errors.UnknownGuest) as error:
        if save.process is None:
            return None
        raise errors.Unreachable(
            f"{error.message}, although its QEMU (pid {save.begun.pid}) is still running",
            hint="start libvirtd again, or shut that QEMU down",
        ) from None


def _check_identity(begun: SaveBegun, session: Session) -> None:
    """Raise Unreachable where another QEMU than the saved one answers at its socket."""
    pid = begun.pid
    if pid is not None and session.pid is not None and session.pid != pid:
        raise errors.Unreachable(
            f"{session.address}: QEMU (pid {pid}), which was being saved, is still running, but "
            f"another one (pid {session.pid}) listens there",
            hint=f"resume the guest of pid {pid} at another of its monitors, or shut it down",
        )


async def _with_qemu(save: Interrupted[SaveBegun], session: Session) -> str:
    orphan, begun = save.orphan, save.begun
    complete = await _complete(save, session)
    if save.dry_run:
        return f"would be: {COMMITTED if complete else PUT_BACK}"
    if orphan.may_have_reached(Step.HAND_OVER):
        warning = await kept.taken_back(save.config.state, session, begun.fdset, begun.settings)
        if warning is not None:
            save.warn(warning)
            # As a save does: no image is made of a file that QEMU still has open.
            complete = complete and (
                orphan.reached(Step.COMMIT) or await recover_image.is_committed_somewhere(save)
            )
    if not complete:
        # First of all: the guest must not wait for an image directory that is gone.
        await _put_back(save, session)
        return PUT_BACK
    try:
        async with recover_image.directory(save) as held:
            if recover_image.is_gone(orphan, begun, held):
                return _gone(begun)  # it may be restored elsewhere: two guests must not run
            await _commit(save, held, session)
    except errors.BadDirectory as error:
        error.hint = _until_recovered(f"mount {begun.directory!r}")
        raise
    except (errors.NotPermitted, PermissionError) as error:
        if isinstance(error, errors.NotPermitted) and orphan.may_have_reached(Step.COMMIT):
            error.hint = _until_recovered(error.hint)  # it may be restored elsewhere
            raise
        # Rights do not come by themselves, as a mount does: the guest does not wait for them.
        await _put_back(save, session)
        return f"{PUT_BACK}: {_NOT_PERMITTED}"
    except (errors.InvalidImage, OSError) as error:
        await _put_back(save, session)
        return f"{PUT_BACK}: QEMU had finished, but the image is invalid: {error}"
    outcome = await _then(save, session)
    if outcome == TAKEN_OVER:
        recover_image.mark_stale(save)
    return outcome


def _until_recovered(first: str | None) -> str:
    return (
        f"{first}, then run 'mapsave recover', which commits the image; the guest is paused until "
        "then. If the image is lost: resume the guest with 'cont' at its monitor, then recover"
    )


async def _complete(save: Interrupted[SaveBegun], session: Session) -> bool:
    """Return whether QEMU has written this save whole, waiting for one that is under way.

    ``completed`` alone may be of an earlier save; but only the guest of a finished save is in
    ``postmigrate``, and one that the dead manager had let run on has a journal that says so.
    """
    orphan = save.orphan
    if await recover_image.is_committed_somewhere(save):
        return True  # whatever the journal says: it may be damaged, or a step be missing
    if not orphan.may_have_reached(Step.MIGRATE):
        return False
    if save.begun.prove != "none" and not orphan.reached(Step.COMMIT):
        return False  # its guest must not go before that is done
    if orphan.reached(Step.COMMITTED) or orphan.reached(Step.RESUME):
        return True
    outcome = await outgoing.query(session)
    if save.dry_run and outcome.status not in IDLE:
        return True
    if outcome.status not in (Status.NONE, Status.COMPLETED):
        outcome = await outgoing.follow(session, progress.Phases())
    if outcome.status != Status.COMPLETED:
        return False
    return await guest_state.left(session, RunState.FINISH_MIGRATE) == RunState.POSTMIGRATE


async def _put_back(save: Interrupted[SaveBegun], session: Session) -> None:
    """Let a guest that was running run again, unless it was not the save that paused it."""
    orphan = save.orphan
    if not orphan.may_have_reached(Step.PAUSE) and not orphan.reached(Step.MIGRATE):
        return
    state = await guest_state.run_state(session)
    if state == RunState.POSTMIGRATE and not await recover_image.continues(save):
        raise errors.GuestNotPutBack(
            f"{session.address}: {_STUCK}, and its image is invalid",
            hint="fix the image directory, then recover again: nothing is lost as long as that "
            "QEMU is running",
            run_state=state,
        )
    was_running = save.begun.was_running
    async with guest_state.put_back_at_end(session, was_running=was_running) as paused:
        if state == RunState.RUNNING:
            paused.release()


async def _then(save: Interrupted[SaveBegun], session: Session) -> str:
    """Do what was to be done after the commit; return the outcome.

    Only a guest that has not run since its save is in ``postmigrate``. One in another state was
    resumed, or paused, by hand: its disks have moved on, and the image does not hold it.
    """
    then = save.begun.then
    if await guest_state.run_state(session) != RunState.POSTMIGRATE:
        return TAKEN_OVER if then == "quit" else COMMITTED
    if then == "quit" and not await ending.end_guest(session):
        raise errors.GuestNotEnded(
            f"{session.address}: {COMMITTED}, but the guest was not shut down",
            hint="it is paused; run 'mapsave recover' again to shut it down",
        )
    if then != "quit" and not await recover_image.continues(save):
        words = f"{_STUCK}: do not resume it; shut that QEMU down and restore the image"
        save.warn(words)
    elif then == "resume":
        await session.resume()
    return COMMITTED


async def _without_qemu(save: Interrupted[SaveBegun], held: store.Directory) -> str:
    """QEMU is gone; what it wrote is whole, or it is not.

    What was not synced yet when the host went down may lack pages though its structure is whole:
    only from the step ``commit`` on it is synced.
    """
    orphan, begun = save.orphan, save.begun
    if recover_image.is_committed(begun, held):
        if not save.dry_run:
            await _commit(save, held)
        return COMMITTED
    # libvirt may have restored it as soon as it had its name, before a step said so.
    may_be_gone = orphan.reached(Step.COMMITTED) or (begun.managed and orphan.reached(Step.COMMIT))
    if may_be_gone and not recover_image.has_partial(begun, held):
        return _gone(begun)
    outcome = QEMU_ENDED if orphan.is_of_this_boot else HOST_WENT_DOWN
    whole = orphan.is_of_this_boot or orphan.reached(Step.COMMIT)
    try:
        async with shielded.entered(recover_image.adopted(begun, held)) as partial:
            # Its superblock says so only once all before it was synced.
            whole = whole or partial.block.state is not State.PARTIAL
            await _check(begun, partial, None)
    except errors.PagesMissing as error:
        return f"QEMU had exited, and {error.message}: partial image removed"
    except (FileNotFoundError, errors.InvalidImage):
        whole = False  # any other error of the disk may pass: the image may be all that is left
    if not whole:
        return outcome
    if not save.dry_run:
        await _commit(save, held)
    return f"{COMMITTED} (QEMU had finished before it exited)"


def _gone(begun: SaveBegun) -> str:
    return TAKEN_BY_LIBVIRT if begun.managed else GONE_SINCE


async def _check(
    begun: SaveBegun, partial: image.Partial, session: Session | None
) -> tuple[Contents, written.Written]:
    """Validate the partial image; look for missing pages. Raises InvalidImage, OSError.

    Not again where the save has done so and polished the image since: used pages may be in holes.
    """
    await blocking.within(stall.limit(process.unwritten_bytes()), partial.sync)
    known = partial.metadata()
    async with blocking.limited(stall.limit(os.fstat(partial.fd).st_size)):
        contents = await blocking.call(partial.validate)
        if (proved := known.get("written")) is not None:
            data = known.get("data_bytes", contents.used_bytes)
            return contents.of_data(data), written.Written.recorded(proved)
        how = written.How.recorded(known)
        return contents, await written.check(partial.fd, contents, how, session, begun.pid)


async def _commit(
    save: Interrupted[SaveBegun], held: store.Directory, session: Session | None = None
) -> None:
    """Commit the partial image, or find that it was; ``session`` is of a guest that lives.

    Raises InvalidImage, OSError with nothing done; CommitFailed where it has its name already.
    """
    begun = save.begun
    if recover_image.is_committed(begun, held):
        with recover_image.has_its_name(begun):
            with descriptors.opened(held.fd, begun.name, os.O_RDWR) as fd:
                _settle_label(save, held, fd)
            os.fsync(held.fd)  # it may have died between rename and fsync
        recover_image.note_whereabouts(save)
        return
    async with shielded.entered(recover_image.adopted(begun, held)) as partial:
        contents, found = await _check(begun, partial, session)
        known = partial.metadata()
        if session is not None and begun.then != "resume":
            opened = await drives.query(session)
            with contextlib.suppress(blocking.Hangs):  # as where they cannot be looked at
                known["disks"] = await blocking.within(
                    blocking.ANSWER, disks.record, begun.pid, opened
                )
        final = metadata.after(
            known,
            contents,
            begun.label,
            found,
            duration=0.0,
            paused_at=os.stat(save.orphan.path).st_mtime if begun.was_running else None,
        )
        try:
            known = final | {"recovered": True}
            commit = functools.partial(partial.commit, known, replace=begun.replace)
            await blocking.within(outgoing.STALL, commit)
        except OSError as error:
            if not partial.has_its_name and not isinstance(error, blocking.Hangs):
                raise
            with recover_image.has_its_name(begun):
                raise
        _settle_label(save, held, partial.fd)
    recover_image.note_whereabouts(save)


def _remove(save: Interrupted[SaveBegun], held: store.Directory) -> None:
    """Delete the partial file, unless another save made it."""
    orphan, begun = save.orphan, save.begun
    try:
        with recover_image.adopting(begun, held) as partial:
            found = partial.block.uuid
            if str(found) != begun.uuid and (
                orphan.reached(Step.LABEL) or journal_facts.claimed(save.config.state, found)
            ):
                return
            _unlink(held, partial.partial)
    except (errors.Busy, FileNotFoundError):
        return  # ours has no owner any more
    except errors.InvalidImage:
        # Without a superblock no one can have come as far as to use it.
        _unlink(held, partial_names.partial_name(begun.name))


def _unlink(held: store.Directory, name: str) -> None:
    """Delete a file. Raises OSError, with the directory, whose rights count."""
    try:
        os.unlink(name, dir_fd=held.fd)
    except FileNotFoundError:
        return
    except OSError as error:
        error.filename = held.path
        raise


def _settle_label(save: Interrupted[SaveBegun], held: store.Directory, fd: int) -> None:
    if save.begun.label is not None:
        path = os.path.join(held.path, save.begun.name)
        save.problems.extend(recovery.settle(fd, path, save.begun.label))
