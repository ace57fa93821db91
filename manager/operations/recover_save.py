"""Recover an interrupted save: commit it where QEMU has finished, else put the guest back."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from manager import errors
from manager.image import descriptors, image, store
from manager.image.superblock import State
from manager.labels import labelling
from manager.labels.label import Label
from manager.migration import guest_state, outgoing, parameters, progress
from manager.migration.parameters import Settings
from manager.monitor import fdset, process
from manager.operations import attach, ending, journal, locks, metadata, save_request, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manager.config import Config
    from manager.image.image import Partial
    from manager.monitor.session import Session
    from manager.operations.journal import Orphan

COMMITTED = "image committed"
PUT_BACK = "guest put back"
QEMU_ENDED = "QEMU had ended before its stream was whole: nothing to commit, partial image removed"
HOST_WENT_DOWN = (
    "the host went down before the image was on stable storage: nothing to commit, "
    "partial image removed"
)
GONE_SINCE = f"{COMMITTED}, and gone from its place since; guest left as it is"


async def recover(config: Config, orphan: Orphan, *, dry_run: bool) -> str:
    """Finish or undo the save, see ``_recover``; nothing stays in QEMU's profile either way."""
    outcome = await _recover(config, orphan, dry_run=dry_run)
    if not dry_run and (label := _label(orphan)) is not None:
        # The image may be gone, or be another's: what is elsewhere is taken out all the same.
        labelling.take_out(label, os.path.join(orphan.facts["directory"], orphan.facts["name"]))
    return outcome


async def _recover(config: Config, orphan: Orphan, *, dry_run: bool) -> str:
    """Finish or undo the save; return what was done (or would be).

    Raises Busy where somebody works on the guest, Unreachable where its QEMU lives but does not
    answer, BadDirectory where the image directory is gone (mount it, and try again).
    """
    found = orphan.facts
    who = f"guest {found['guest']!r}"
    monitor = attach.Monitor(**found["monitor"])
    with (
        locks.held(config.state, who, monitor.key),
        locks.process_held(config.state, who, _process(orphan)),
        store.directory(found["directory"]) as held,
    ):
        if _may_live(orphan, monitor):
            async with contextlib.AsyncExitStack() as stack:
                session = await _session(orphan, monitor, stack)
                if session is not None:
                    _check_identity(orphan, session)
                    return await _with_qemu(config, orphan, held, session, dry_run=dry_run)
        return await _without_qemu(config, orphan, held, dry_run=dry_run)


def _process(orphan: Orphan) -> tuple[int, int] | None:
    pid, started = orphan.facts.get("pid"), orphan.facts.get("process_started")
    return (int(pid), int(started)) if pid is not None and started is not None else None


def _may_live(orphan: Orphan, monitor: attach.Monitor) -> bool:
    if not orphan.is_of_this_boot:
        return False
    found = _process(orphan)
    if found is not None:
        return process.alive(*found)
    # Behind a proxy or in another pid namespace: the monitor has to tell.
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
            f"{error.message}, though its QEMU (pid {orphan.facts['pid']}) lives",
            hint="start libvirtd again, or end that QEMU",
        ) from None


def _check_identity(orphan: Orphan, session: Session) -> None:
    """Raise Unreachable where another QEMU than the saved one answers at its socket."""
    pid = orphan.facts.get("pid")
    if pid is not None and session.pid is not None and session.pid != pid:
        raise errors.Unreachable(
            f"{session.address}: QEMU (pid {pid}), which was being saved, lives, "
            f"but another one (pid {session.pid}) listens there",
            hint=f"continue the guest of pid {pid} at another monitor of it, or end it",
        )


async def _with_qemu(
    config: Config, orphan: Orphan, held: store.Directory, session: Session, *, dry_run: bool
) -> str:
    complete = await _complete(orphan, session, dry_run=dry_run)
    if dry_run:
        return f"would be: {COMMITTED if complete else PUT_BACK}"
    if orphan.reached("hand-over"):
        await fdset.take_back(session, int(orphan.facts["fdset"]))
        await parameters.put_back(session, Settings.from_dict(orphan.facts["settings"]))
    if orphan.reached("committed") and not _is_committed(orphan, held):
        return GONE_SINCE  # it may be restored elsewhere: two guests must not run
    if complete:
        try:
            await _commit(config, orphan, held)
        except (errors.InvalidImage, OSError) as error:
            await _put_back(orphan, session)
            _remove(config, orphan, held)
            return f"{PUT_BACK}: QEMU had finished, but the image is not good: {error}"
        await _then(orphan, session)
        return COMMITTED
    await _put_back(orphan, session)
    _remove(config, orphan, held)
    return PUT_BACK


async def _complete(orphan: Orphan, session: Session, *, dry_run: bool) -> bool:
    """Tell whether QEMU has written this save whole, waiting for one that is under way.

    ``completed`` alone may be of an earlier save; but only the guest of a finished save is in
    ``postmigrate``, and one that the dead manager had let run on has a journal that says so.
    """
    if not orphan.reached("migrate"):
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
    if not orphan.reached("pause") and not orphan.reached("migrate"):
        return
    async with guest_state.put_back_at_end(
        session, was_running=bool(orphan.facts["was_running"])
    ) as paused:
        if await guest_state.run_state(session) == "running":
            paused.release()


async def _then(orphan: Orphan, session: Session) -> None:
    """Do what was to be done behind the commit, unless the guest runs by somebody's hand."""
    if await guest_state.run_state(session) == "running":
        return
    if orphan.facts["then"] == "quit":
        await ending.end_guest(session)
    elif orphan.facts["then"] == "resume":
        await session.resume()


async def _without_qemu(
    config: Config, orphan: Orphan, held: store.Directory, *, dry_run: bool
) -> str:
    """QEMU is gone; what it wrote is whole, or it is not.

    What was not synced yet when the host went down may lack pages though its structure is whole:
    only from the step ``commit`` on it is synced.
    """
    if _is_committed(orphan, held):
        if not dry_run:
            await _commit(config, orphan, held)
        return COMMITTED
    outcome = QEMU_ENDED if orphan.is_of_this_boot else HOST_WENT_DOWN
    whole = orphan.is_of_this_boot or orphan.reached("commit")
    try:
        with _adopted(orphan, held) as partial:
            partial.validate()
    except (OSError, errors.InvalidImage):
        whole = False
    if not whole:
        if not dry_run:
            _remove(config, orphan, held)
        return outcome
    if not dry_run:
        await _commit(config, orphan, held)
    return f"{COMMITTED} (QEMU had finished before it ended)"


async def _commit(config: Config, orphan: Orphan, held: store.Directory) -> None:
    """Commit the partial image, or find that it was.

    Raises InvalidImage, OSError.
    """
    if _is_committed(orphan, held):
        with descriptors.opened(held.fd, str(orphan.facts["name"]), os.O_RDWR) as fd:
            _settle_label(config, orphan, held, fd)
        os.fsync(held.fd)  # it may have died between rename and fsync
        return
    with _adopted(orphan, held) as partial:
        await waiting.in_thread(partial.sync)
        contents = await waiting.in_thread(partial.validate)
        label = _label(orphan)
        known = partial.metadata()
        final = metadata.after(known, contents, label, duration=0.0, paused_at=_paused_at(orphan))
        partial.commit({**final, "recovered": True}, replace=bool(orphan.facts["replace"]))
        _settle_label(config, orphan, held, partial.fd)


@contextlib.contextmanager
def _adopted(orphan: Orphan, held: store.Directory) -> Iterator[Partial]:
    """Open the partial image of this save. Raises OSError, Busy, InvalidImage."""
    with image.adopting(held.fd, str(orphan.facts["name"])) as partial:
        if str(partial.block.uuid) != orphan.facts.get("uuid"):
            raise errors.InvalidImage(f"{partial.partial!r} is of another save")
        yield partial


def _paused_at(orphan: Orphan) -> float | None:
    return os.stat(orphan.path).st_mtime if orphan.facts["was_running"] else None


def _is_committed(orphan: Orphan, held: store.Directory) -> bool:
    """Tell whether the image under its final name is the one of this save."""
    path = os.path.join(held.path, str(orphan.facts["name"]))
    try:
        with image.opened(path) as found:
            ours = str(found.block.uuid) == orphan.facts.get("uuid")
            return ours and found.block.state is not State.PARTIAL
    except errors.MapsaveError:
        return False


def _label(orphan: Orphan) -> Label | None:
    data = orphan.facts.get("label")
    return Label.from_dict(data) if data else None


def _remove(config: Config, orphan: Orphan, held: store.Directory) -> None:
    """Take the label's traces (an AppArmor rule) back and delete the partial file.

    One of that name that another save made is left alone.
    """
    name = str(orphan.facts["name"])
    try:
        with image.adopting(held.fd, name) as partial:
            found = partial.block.uuid
            if str(found) == orphan.facts.get("uuid"):
                _settle_label(config, orphan, held, partial.fd)
            elif orphan.reached("label") or journal.claimed(config.state, found):
                return
            partial.remove()
    except errors.Busy:
        return  # ours has no owner any more
    except FileNotFoundError:
        return
    except errors.InvalidImage:
        # Without a superblock nobody can have come as far as to use it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(image.partial_name(name), dir_fd=held.fd)


def _settle_label(config: Config, orphan: Orphan, held: store.Directory, fd: int) -> None:
    label = _label(orphan)
    if label is None:
        return
    name = str(orphan.facts["name"])
    paths = [os.path.join(held.path, each) for each in (image.partial_name(name), name)]
    labels = save_request.policy_labelling(config, str(orphan.facts["policy"]))
    labels.settle(fd, paths[0], paths[1:], label, "save")
