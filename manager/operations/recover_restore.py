"""Recover an interrupted restore: the guest runs already, or the image is as it was.

At the socket of the destination anybody may listen by now: the guest itself, started anew by its
owner. So only a QEMU that is surely the interrupted destination is ended, and none that runs.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from manager import errors
from manager.image import image
from manager.image.superblock import State
from manager.labels import labelling
from manager.labels.label import Label
from manager.migration import guest_state, parameters
from manager.migration.parameters import Settings
from manager.monitor import fdset, process
from manager.operations import attach, ending, locks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manager.config import Config
    from manager.image.image import Image
    from manager.monitor.session import Session
    from manager.operations.journal import Orphan

RUNS = "guest restored"
UNDONE = "destination ended, image as before"
LEFT = "image as before; the destination, which mapsave had not started, was left paused"
PAUSED = (
    "image as before; libvirt may have loaded the guest meanwhile: if the domain that is active is "
    "that one, end it (virsh destroy) or let it run (virsh resume)"
)
ENDED_SINCE = "guest restored, and ended since; the image stays marked as restored"


async def recover(config: Config, orphan: Orphan, *, dry_run: bool) -> str:
    """Finish or undo the restore, see ``_recover``; nothing stays in QEMU's profile either way."""
    outcome = await _recover(config, orphan, dry_run=dry_run)
    if not dry_run and (label := orphan.facts.get("label")):
        labelling.take_out(Label.from_dict(label), str(orphan.facts["image"]))
    return outcome


async def _recover(config: Config, orphan: Orphan, *, dry_run: bool) -> str:
    """Finish the restore where the guest was about to run, else undo it; return which.

    Raises Busy where somebody works on the destination or the image, Unreachable where the
    destination lives but does not answer.
    """
    with _image_held(config, orphan) as opened:
        if orphan.facts.get("monitor") is None:
            return UNDONE  # nothing had been started
        monitor = attach.Monitor(**orphan.facts["monitor"])
        with locks.held(config.state, f"guest {orphan.facts['guest']!r}", monitor.key):
            try:
                async with monitor.connected() as session:
                    if await _is_destination(orphan, session):
                        return await _with_qemu(orphan, opened, session, dry_run=dry_run)
                    if _libvirt_may_have_loaded(orphan, monitor):
                        return PAUSED
            except (errors.Unreachable, errors.WrongRunState, errors.UnknownGuest):
                if _lives(orphan):
                    raise
        return _without_qemu(orphan, opened, dry_run=dry_run)


def _libvirt_may_have_loaded(orphan: Orphan, monitor: attach.Monitor) -> bool:
    """Tell whether libvirt itself was reading the image: it goes on without its client."""
    return (
        monitor.uri is not None
        and bool(orphan.facts.get("through_libvirt"))
        and (not orphan.reached("loaded"))
    )


@contextlib.contextmanager
def _image_held(config: Config, orphan: Orphan) -> Iterator[Image | None]:
    """Open and lock the image, as a restore of it does; None where it is gone or damaged."""
    with contextlib.ExitStack() as stack:
        opened = None
        with contextlib.suppress(errors.ImageNotFound, errors.InvalidImage):
            opened = stack.enter_context(image.opened(str(orphan.facts["image"])))
        if opened is not None:
            key = f"image:{opened.block.uuid}"
            stack.enter_context(locks.held(config.state, f"image {opened.path!r}", key))
            opened.reread()  # as it is now that nobody changes it
        yield opened


def _lives(orphan: Orphan) -> bool:
    """Tell whether the destination is known, and known to live."""
    pid, started = orphan.facts.get("pid"), orphan.facts.get("process_started")
    if pid is None or started is None or not orphan.is_of_this_boot:
        return False
    return process.alive(int(pid), int(started))


async def _is_destination(orphan: Orphan, session: Session) -> bool:
    """Tell whether the QEMU that answers is the destination, not another that came since."""
    if await guest_state.run_state(session) == "inmigrate":
        return True  # waits for a guest, so holds none
    return _lives(orphan) and session.pid == orphan.facts["pid"]


async def _with_qemu(
    orphan: Orphan, opened: Image | None, session: Session, *, dry_run: bool
) -> str:
    runs = await guest_state.run_state(session) == "running"
    if runs or orphan.reached("run"):
        if not dry_run:
            await _tidy(orphan, session)
            # Somebody has let it run before we came, or the mark was taken back.
            if opened is not None and opened.block.state is not State.RESTORED:
                with contextlib.suppress(OSError):  # as a restore: not every image can be marked
                    opened.mark(State.RESTORED)
            if not runs:
                await session.resume()
        return RUNS
    launched = orphan.reached("launch")
    outcome = UNDONE if launched else LEFT
    if dry_run:
        return f"would be: {outcome}"
    if launched:
        await ending.end_guest(session)
    else:
        await _tidy(orphan, session)
    _unmark(orphan, opened)
    return outcome


def _without_qemu(orphan: Orphan, opened: Image | None, *, dry_run: bool) -> str:
    """The destination is gone. A guest that ran has changed its disks: the image stays marked."""
    if orphan.reached("run"):
        return ENDED_SINCE
    if not dry_run:
        _unmark(orphan, opened)
    return UNDONE


async def _tidy(orphan: Orphan, session: Session) -> None:
    if orphan.reached("load"):
        await fdset.take_back(session, int(orphan.facts["fdset"]))
        await parameters.put_back(session, Settings.from_dict(orphan.facts["settings"]))


def _unmark(orphan: Orphan, opened: Image | None) -> None:
    """Give the image the state back that it had before, where it was marked and not again since.

    Raises OSError.
    """
    if opened is None or not orphan.reached("mark"):
        return
    ours = opened.block.sequence == int(orphan.facts["sequence"]) + 1
    if ours and opened.block.state is State.RESTORED:
        opened.mark(State(int(orphan.facts["before"])))
