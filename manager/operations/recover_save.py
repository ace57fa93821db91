"""Recover an interrupted save: commit it where QEMU has finished, else put the guest back."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.image import image, store
from manager.image.superblock import State
from manager.labels.label import Label
from manager.migration import guest_state, outgoing, parameters, progress
from manager.migration.parameters import Settings
from manager.monitor import fdset, process, qmp
from manager.operations import attach, locks, metadata, save, waiting

if TYPE_CHECKING:
    from manager.config import Config
    from manager.image.image import Partial
    from manager.monitor.session import Session
    from manager.operations.journal import Orphan

COMMITTED = "image committed"
PUT_BACK = "guest put back"
QEMU_ENDED = "QEMU had ended before its stream was whole: nothing to commit, partial image removed"


async def recover(config: Config, orphan: Orphan, *, dry_run: bool) -> str:
    """Finish or undo the save; return what was done (or would be).

    Raises Busy where somebody works on the guest, Unreachable where its QEMU lives but does not
    answer, BadDirectory where the image directory is gone (mount it, and try again).
    """
    found = orphan.facts
    who = f"guest {found['guest']!r}"
    with (
        locks.held(config.state, who, attach.lock_key(found["socket"])),
        store.directory(found["directory"]) as held,
    ):
        if _lives(found):
            async with qmp.connected(found["socket"]) as session:
                return await _with_qemu(config, orphan, held, session, dry_run=dry_run)
        return await _without_qemu(config, orphan, held, dry_run=dry_run)


def _lives(found: dict[str, Any]) -> bool:
    pid, started = found.get("pid"), found.get("process_started")
    if pid is None:  # behind a proxy or in another pid namespace: the socket has to tell
        return os.path.exists(found["socket"])
    return process.alive(int(pid), int(started or 0))


async def _with_qemu(
    config: Config, orphan: Orphan, held: store.Directory, session: Session, *, dry_run: bool
) -> str:
    complete = await _complete(orphan, session, dry_run=dry_run)
    if dry_run:
        return f"would be: {COMMITTED if complete else PUT_BACK}"
    await fdset.take_back(session, int(orphan.facts["fdset"]))
    await parameters.put_back(session, Settings.from_dict(orphan.facts["settings"]))
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
    """Let a guest that was running run again."""
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
        await save.end_guest(session)
    elif orphan.facts["then"] == "resume":
        await guest_state.resume(session)


async def _without_qemu(
    config: Config, orphan: Orphan, held: store.Directory, *, dry_run: bool
) -> str:
    """QEMU is gone; what it wrote is whole, or it is not."""
    try:
        with image.adopting(held.fd, orphan.facts["name"]) as partial:
            partial.validate()
    except (OSError, errors.InvalidImage):
        if _is_committed(orphan, held):
            return COMMITTED
        if not dry_run:
            _remove(config, orphan, held)
        return QEMU_ENDED
    if not dry_run:
        await _commit(config, orphan, held)
    return f"{COMMITTED} (QEMU had finished before it ended)"


async def _commit(config: Config, orphan: Orphan, held: store.Directory) -> None:
    """Commit the partial image, or find that it was.

    Raises InvalidImage, OSError.
    """
    name = str(orphan.facts["name"])
    if _is_committed(orphan, held):
        return
    with image.adopting(held.fd, name) as partial:
        await waiting.in_thread(partial.sync)
        contents = await waiting.in_thread(partial.validate)
        label = _label(orphan)
        known = partial.metadata()
        final = metadata.after(known, contents, label, duration=0.0, paused_at=_paused_at(orphan))
        partial.commit({**final, "recovered": True}, replace=bool(orphan.facts["replace"]))
        _settle_label(config, orphan, held, partial)


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
    """Take the label's traces (an AppArmor rule) back and delete the partial file."""
    name = str(orphan.facts["name"])
    partial_path = image.partial_name(name)
    with (
        contextlib.suppress(FileNotFoundError, errors.InvalidImage),
        image.adopting(held.fd, name) as partial,
    ):
        _settle_label(config, orphan, held, partial)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial_path, dir_fd=held.fd)


def _settle_label(config: Config, orphan: Orphan, held: store.Directory, partial: Partial) -> None:
    label = _label(orphan)
    if label is None:
        return
    name = str(orphan.facts["name"])
    paths = [os.path.join(held.path, each) for each in (image.partial_name(name), name)]
    labels = save.policy_labelling(config, str(orphan.facts["policy"]))
    labels.settle(partial.fd, paths[0], paths[1:], label, "save")
