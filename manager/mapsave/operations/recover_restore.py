"""Recover an interrupted restore: the guest runs already, or the image is as it was.

At the socket of the destination anything may listen by now: the guest itself, restarted by its
owner. So only a QEMU that is surely the interrupted destination is ended, and only while it
waits: in run state ``paused`` is a guest that was just loaded, and one that ran and was paused
as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.image import image
from mapsave.labels import recovery
from mapsave.labels.label import Label, Problem
from mapsave.migration import guest_state
from mapsave.monitor import process
from mapsave.operations import attach, ending, journal, kept, locks, restored_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapsave.config import Config
    from mapsave.image.image import Image
    from mapsave.monitor.session import Session
    from mapsave.operations.journal import Orphan

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
MAY_RUN = (
    "the guest running at the destination may be the restored one; the image is marked as "
    "restored: restore --again restores it anyway"
)
MAY_HAVE_RUN = (
    "destination exited since; its guest was loaded and may have run, so the image remains "
    "marked as restored: restore --again restores it anyway"
)
ENDED_SINCE = "guest restored, and exited since; the image remains marked as restored"


async def recover(config: Config, orphan: Orphan, problems: list[Problem], *, dry_run: bool) -> str:
    """Finish the restore where the guest was about to run, else undo it; return which.

    Nothing stays in QEMU's profile or on the image either way; what goes wrong there is added to
    ``problems``. Raises Busy where the destination or the image is in use, Unreachable where the
    destination lives but does not answer.
    """
    with _image_held(config, orphan) as opened:
        monitor = _monitor(config, orphan)
        if monitor is None:
            return UNDONE  # nothing had been started
        with locks.held(config.state, f"guest {orphan.facts['guest']!r}", monitor.key):
            if orphan.reached("tidy"):
                outcome = str(orphan.facts.get("outcome", RUNS))
            else:
                found = _Restore(config, orphan, opened, problems, dry_run)
                outcome = await _finish_or_undo(found, monitor)
                if not dry_run:
                    with contextlib.suppress(OSError):
                        journal.add(orphan, "tidy", outcome=outcome)
            if not dry_run:
                # Under the locks: who begins after them must not rely on what we take out.
                _take_label_back(orphan, opened, problems)
            return outcome


@dataclasses.dataclass(frozen=True)
class _Restore:
    """An interrupted restore: its journal and its image, None where that is gone or damaged."""

    config: Config
    orphan: Orphan
    opened: Image | None
    problems: list[Problem]
    dry_run: bool

    def mark(self) -> None:
        """Mark the image as restored, as far as that can be done; what cannot is a problem."""
        if self.opened is None or self.dry_run:
            return
        try:
            warning = restored_notes.mark(self.config.state, self.opened)
        except OSError as error:
            warning = f"{self.opened.path!r} cannot be marked as restored, {error.strerror}"
        if warning is not None:
            self.problems.append(Problem(warning, recoverable=False))

    @property
    def is_marked(self) -> bool:
        """Whether the image, or a copy of it, is marked as restored."""
        return self.opened is not None and restored_notes.is_used(self.config.state, self.opened)


def _monitor(config: Config, orphan: Orphan) -> attach.Monitor | None:
    """Return the monitor of the destination; None where nothing had been started.

    Where the journal does not say which it was, it is the one that the guest is configured with.
    Raises JournalUnusable where it has none.
    """
    if orphan.facts.get("monitor") is not None:
        return attach.Monitor(**orphan.facts["monitor"])
    if not orphan.is_unsure:
        return None
    guest = config.guests.get(str(orphan.facts["guest"]))
    if guest is not None and guest.libvirt is not None:
        return attach.Monitor(uri=guest.libvirt.uri, domain=guest.libvirt.domain)
    if guest is not None and (guest.qmp is not None or guest.emulator is not None):
        return attach.Monitor.at(attach.socket_path(guest, config))
    raise errors.JournalUnusable(
        f"the journal {str(orphan.path)!r} is damaged, and does not say which QEMU the image "
        f"{orphan.facts['image']!r} was being loaded into",
        hint="check whether a QEMU is waiting or paused: quit it, or resume it and do not "
        "restore the image again; then move the journal away",
    )


def _take_label_back(orphan: Orphan, opened: Image | None, problems: list[Problem]) -> None:
    if (data := orphan.facts.get("label")) is None:
        return
    label, path = Label.from_dict(data), str(orphan.facts["image"])
    problems += recovery.take_out(label, path)
    if opened is not None:
        problems += recovery.put_back(opened.fd, path, label)


async def _finish_or_undo(found: _Restore, monitor: attach.Monitor) -> str:
    orphan = found.orphan
    try:
        async with monitor.connected() as session:
            state = await guest_state.run_state(session)
            if _is_destination(orphan, session, state):
                return await _with_qemu(found, session, state)
            if _libvirt_may_have_loaded(orphan, monitor):
                return PAUSED
            if orphan.may_have_reached("load") and _pid(orphan) is None and state != "inmigrate":
                return _loaded(found, state)  # it may be
    except (errors.Unreachable, errors.WrongRunState, errors.UnknownGuest):
        if _lives(orphan):
            raise
    return _without_qemu(found)


def _libvirt_may_have_loaded(orphan: Orphan, monitor: attach.Monitor) -> bool:
    """Return whether libvirt itself was reading the image: it goes on without its client."""
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
        try:
            opened = stack.enter_context(image.opened(str(orphan.facts["image"])))
        except errors.UnreadableImage:
            raise  # it may have to be marked, once it can be read again
        except (errors.ImageNotFound, errors.InvalidImage):
            pass
        if opened is not None:
            key = f"image:{opened.block.uuid}"
            stack.enter_context(locks.held(config.state, f"image {opened.path!r}", key))
            opened.reread()  # as it is now that nothing changes it
        yield opened


def _pid(orphan: Orphan) -> int | None:
    """Return the pid of the destination, known from its loading on where it is in our sight."""
    pid = orphan.facts.get("pid")
    return int(pid) if pid is not None else None


def _lives(orphan: Orphan) -> bool:
    """Return whether the destination is known, and known to live."""
    pid, started = _pid(orphan), orphan.facts.get("process_started")
    if pid is None or started is None or not orphan.is_of_this_boot:
        return False
    return process.alive(pid, int(started))


def _is_destination(orphan: Orphan, session: Session, state: str) -> bool:
    """Return whether the QEMU that answers is the destination, not another that came since."""
    if (pid := _pid(orphan)) is not None:
        return _lives(orphan) and session.pid == pid
    return state == "inmigrate"  # waits for a guest, so holds none


async def _with_qemu(found: _Restore, session: Session, state: str) -> str:
    orphan, runs = found.orphan, state == "running"
    if runs or orphan.reached("run"):
        if not found.dry_run:
            await _tidy(found, session)
            found.mark()  # it was resumed before we came, or the mark was taken back
            if not runs:
                await session.resume()
        return RUNS
    if state != "inmigrate":
        if not found.dry_run:
            await _tidy(found, session)
        return _loaded(found, state)
    launched = orphan.reached("launch")
    outcome = UNDONE if launched else LEFT
    if found.dry_run:
        return f"would be: {outcome}"
    if launched:
        await ending.end_guest(session)
    else:
        await _tidy(found, session)
    return outcome


def _loaded(found: _Restore, state: str) -> str:
    """Leave a loaded guest as it is: if it ran, its disks have moved on, and only it has them."""
    outcome = MAY_RUN if state == "running" else LOADED
    if found.dry_run:
        return f"would be: {outcome}"
    found.mark()
    return outcome


def _without_qemu(found: _Restore) -> str:
    """The destination is gone. A guest that ran has changed its disks: the image stays marked."""
    if found.orphan.reached("run"):
        return ENDED_SINCE
    return MAY_HAVE_RUN if found.orphan.may_have_reached("mark") and found.is_marked else UNDONE


async def _tidy(found: _Restore, session: Session) -> None:
    if not found.orphan.may_have_reached("load") or "fdset" not in found.orphan.facts:
        return
    warning = await kept.taken_back(found.config.state, session, found.orphan)
    if warning is not None:
        found.problems.append(Problem(warning, recoverable=False))
