"""Recover an interrupted restore: the guest runs already, or the image is as it was.

At the socket of the destination anything may listen by now: the guest itself, restarted by its
owner. So only a QEMU that is surely the interrupted destination is ended, and only while it
waits: in run state ``paused`` is a guest that was just loaded, and one that ran and was paused
as well.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mapsave import errors, instant_names
from mapsave.image import acl, image
from mapsave.image.image import Image
from mapsave.labels import recovery
from mapsave.labels.label import Problem
from mapsave.migration import guest_state
from mapsave.migration.run_states import RunState
from mapsave.monitor import process
from mapsave.monitor.session import Session
from mapsave.operations import (
    answering,
    attach,
    ending,
    kept,
    locks,
    managed_save,
    restored_notes,
    whereabouts,
)
from mapsave.operations.begun import RestoreBegun
from mapsave.operations.interrupted import Interrupted
from mapsave.operations.steps import Step

RUNS = "guest restored"
UNDONE = "destination stopped, image as before"
LEFT = "image as before; the destination, which mapsave had not started, was left paused"
PAUSED = (
    "image as before; libvirt may have loaded the guest: if that domain is active, destroy it "
    "(virsh destroy) or resume it (virsh resume)"
)
LOADED = (
    "guest restored and left paused because it may have been used since; resume it ('cont' or "
    "virsh resume) or shut it down; the image remains marked as restored"
)
CLONE_LOADED = (
    "clone started and left as it is because it may have been used since; resume it ('cont'), or "
    "shut it down"
)
MAY_RUN = (
    "the guest running at the destination may be the restored one; the image is marked as "
    "restored: restore --again restores it anyway"
)
MAY_HAVE_RUN = (
    "destination exited since; its guest was loaded and may have run, so the image remains "
    "marked as restored: restore --again restores it anyway"
)
ENDED_SINCE = "guest restored, and exited since; the image remains marked as restored"
CLONE_ENDED_SINCE = "clone started, and exited since"
# Outcomes of a restore that came to its end.
RESTORED = (RUNS, ENDED_SINCE, CLONE_ENDED_SINCE)


_Restore = Interrupted[RestoreBegun]


async def recover(restore: _Restore) -> str:
    """Finish the restore where the guest was about to run, else undo it; return which.

    Raises Busy where the destination or the image is in use, Unreachable where the destination
    lives but does not answer, BadDirectory where the image's storage does not.
    """
    state, begun = restore.config.state, restore.begun
    directory = os.path.dirname(begun.image)
    await answering.check(directory, writable=not restore.dry_run)
    with _image_held(restore) as opened:
        monitor = _monitor(restore)
        if monitor is None:  # nothing had been started that has not gone with mapsave
            if not restore.dry_run:
                await answering.within(directory, _settle, restore, opened, UNDONE)
            return UNDONE
        with locks.held(state, f"guest {begun.guest!r}", monitor.key):
            if not restore.dry_run:
                await answering.within(directory, _remove_link, restore)
            outcome = await restore.outcome(
                lambda: _finish_or_undo(restore, opened, monitor), default=RUNS
            )
            if not restore.dry_run:
                # Under the locks: who begins after them must not rely on what we take out.
                await answering.within(directory, _settle, restore, opened, outcome)
            return outcome


def _settle(restore: _Restore, opened: Image | None, outcome: str) -> None:
    """Take back the label, and what let QEMU's user open the image. Blocks."""
    begun = restore.begun
    if begun.label is not None:
        restore.problems.extend(recovery.take_out(begun.label, begun.image))
        if opened is not None:
            restore.problems.extend(recovery.put_back(opened.fd, begun.image, begun.label))
    if opened is not None:
        _put_acl_back(restore, opened)
        _settle_managed(restore, opened, outcome)


def _remove_link(restore: _Restore) -> None:
    """Remove the link by which a QEMU of libvirt's opened the image, or may be about to. Blocks."""
    link = restore.begun.link
    if link is None or not instant_names.LINK.fullmatch(os.path.basename(link)):
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        with contextlib.suppress(FileNotFoundError):  # the directory
            # Also where the link was gone: the manager may have died before it was so durably.
            locks.sync_directory(Path(link).parent)
    except OSError as error:
        restore.warn(f"{link!r} may remain: {error.strerror}; remove it")


def _put_acl_back(restore: _Restore, opened: Image) -> None:
    """Take back what let QEMU's user open the image: it has, or never will."""
    begun = restore.begun
    if begun.acl is None:
        return
    if (str(opened.block.uuid), os.fstat(opened.fd).st_ino) != (begun.uuid, begun.inode):
        restore.warn(
            f"{opened.path!r} is another file now: the image that was restored from there may "
            "still be readable by the user of its QEMU (getfacl)"
        )
        return
    try:
        acl.write(opened.fd, bytes.fromhex(begun.acl))
    except OSError as error:
        words = f"{opened.path!r} is still readable by the user of its QEMU: {error.strerror}"
        restore.problems.append(Problem(f"{words} (run 'mapsave recover')", recoverable=True))


def _settle_managed(restore: _Restore, opened: Image, outcome: str) -> None:
    """Let libvirt find a managed save again only where its guest surely has not run."""
    begun = restore.begun
    if begun.is_clone:
        return
    note = whereabouts.managed_save_of(restore.config.state, opened)
    noted = note.image if note is not None else None
    try:
        if outcome in (UNDONE, LEFT):
            for path in {begun.image, noted or begun.image}:
                if managed_save.where(path) != path:
                    managed_save.put_back(path)
        elif outcome != PAUSED:
            for path in managed_save.in_place(opened, noted, begun.pid):
                managed_save.set_aside(path)
            if noted is not None and outcome in RESTORED:
                managed_save.remove(noted)
    except OSError as error:
        restore.warn(f"{noted or begun.image!r}: cannot be renamed or removed: {error.strerror}")


def _mark(restore: _Restore, opened: Image | None) -> None:
    """Mark the image as restored, as far as that can be done; what cannot is a problem."""
    if opened is None or restore.dry_run or restore.begun.is_clone:
        return
    try:
        warning = restored_notes.mark(restore.config.state, opened)
    except OSError as error:
        warning = f"{opened.path!r} cannot be marked as restored, {error.strerror}"
    if warning is not None:
        restore.warn(warning)


def _monitor(restore: _Restore) -> attach.Monitor | None:
    """Return the destination's monitor, by the journal or else the configuration; None: not begun.

    Raises JournalUnusable where neither says which it was.
    """
    config, orphan, begun = restore.config, restore.orphan, restore.begun
    if begun.monitor is not None or not orphan.is_unsure or orphan.kind == "prove":
        return begun.monitor
    guest = config.named(begun.guest)
    if guest is not None and guest.libvirt is not None:
        return attach.Monitor(uri=guest.libvirt.uri, domain=guest.libvirt.domain)
    if guest is not None and (guest.qmp is not None or guest.emulator is not None):
        return attach.Monitor.at(attach.socket_path(guest, config))
    raise errors.JournalUnusable(
        f"the journal {str(orphan.path)!r} is damaged, and does not say which QEMU the image "
        f"{begun.image!r} was being loaded into",
        hint="check whether a QEMU is waiting or paused: quit it, or resume it and do not "
        "restore the image again; then move the journal away",
    )


async def _finish_or_undo(restore: _Restore, opened: Image | None, monitor: attach.Monitor) -> str:
    pid = restore.begun.pid  # known from its loading on, where it is in our sight
    try:
        async with monitor.connected() as session:
            state = await guest_state.run_state(session)
            if _is_destination(restore, session, state):
                return await _with_qemu(restore, opened, session, state)
            # Libvirt, which was reading the image itself, goes on without its client.
            by_libvirt = monitor.uri is not None and restore.begun.through_libvirt
            if by_libvirt and not restore.orphan.reached(Step.LOADED):
                return PAUSED
            may_be_loaded = restore.orphan.may_have_reached(Step.LOAD) and pid is None
            if may_be_loaded and state != RunState.INMIGRATE:
                return _loaded(restore, opened, state)  # it may be
    except (errors.Unreachable, errors.WrongRunState, errors.UnknownGuest):
        if _lives(restore):
            raise
    return _without_qemu(restore, opened)


@contextlib.contextmanager
def _image_held(restore: _Restore) -> Iterator[Image | None]:
    """Open and lock the image, as a restore of it does; None where it is gone or damaged."""
    with contextlib.ExitStack() as stack:
        opened = None
        try:
            path = managed_save.where(restore.begun.image)
            opened = stack.enter_context(image.opened(path, without_metadata=True))
        except errors.UnreadableImage:
            raise  # it may have to be marked, once it can be read again
        except (errors.ImageNotFound, errors.InvalidImage):
            pass
        if opened is not None:
            key = locks.image_key(opened.block.uuid)
            what = f"image {opened.path!r}"
            stack.enter_context(locks.held(restore.config.state, what, key))
            opened.reread()  # as it is now that nothing changes it
        yield opened


def _lives(restore: _Restore) -> bool:
    if restore.process is None or not restore.orphan.is_of_this_boot:
        return False
    return process.alive(*restore.process)


def _is_destination(restore: _Restore, session: Session, state: str) -> bool:
    """Return whether the QEMU that answers is the destination, not another that came since."""
    if restore.begun.pid is not None:
        return _lives(restore) and session.pid == restore.begun.pid
    return state == RunState.INMIGRATE  # waits for a guest, so holds none


async def _with_qemu(restore: _Restore, opened: Image | None, session: Session, state: str) -> str:
    orphan, runs = restore.orphan, state == RunState.RUNNING
    if runs or orphan.reached(Step.RUN):
        if not restore.dry_run:
            await _tidy(restore, session)
            # It was resumed before we came, or the mark was taken back.
            _mark(restore, opened)
            if not runs:
                await session.resume()
        return RUNS
    if state != RunState.INMIGRATE:
        if not restore.dry_run:
            await _tidy(restore, session)
        return _loaded(restore, opened, state)
    launched = orphan.reached(Step.LAUNCH)
    outcome = UNDONE if launched else LEFT
    if restore.dry_run:
        return f"would be: {outcome}"
    if launched:
        await ending.end_guest(session)
    else:
        await _tidy(restore, session)
    return outcome


def _loaded(restore: _Restore, opened: Image | None, state: str) -> str:
    """Leave a loaded guest as it is: if it ran, its disks have moved on, and only it has them."""
    outcome = MAY_RUN if state == RunState.RUNNING else LOADED
    outcome = CLONE_LOADED if restore.begun.is_clone else outcome
    if restore.dry_run:
        return f"would be: {outcome}"
    _mark(restore, opened)
    return outcome


def _without_qemu(restore: _Restore, opened: Image | None) -> str:
    """The destination is gone. A guest that ran has changed its disks: the image stays marked."""
    if restore.orphan.reached(Step.RUN):
        return CLONE_ENDED_SINCE if restore.begun.is_clone else ENDED_SINCE
    if restore.begun.is_clone or opened is None or not restore.orphan.may_have_reached(Step.MARK):
        return UNDONE
    return MAY_HAVE_RUN if restored_notes.is_used(restore.config.state, opened) else UNDONE


async def _tidy(restore: _Restore, session: Session) -> None:
    number, settings = restore.begun.fdset, restore.begun.settings
    if number is None or settings is None or not restore.orphan.may_have_reached(Step.LOAD):
        return
    warning = await kept.taken_back(restore.config.state, session, number, settings)
    if warning is not None:
        restore.warn(warning)
