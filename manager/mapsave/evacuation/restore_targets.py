"""The guests of restore-all: what the record says of them, and whether there is anything to do."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import shlex
import time
from collections.abc import Iterator
from typing import Literal, TypedDict

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.evacuation import guests
from mapsave.evacuation.record import Entry, Record
from mapsave.image import descriptors, image
from mapsave.image.superblock import State
from mapsave.operations import answering, attach, locks, restored_notes, whereabouts
from mapsave.operations.results import RestoreResult
from mapsave.strict_json import Facts

_log = logging.getLogger(__name__)

Outcome = Literal["planned", "restored", "failed", "skipped", "not_saved"]

_GONE = {
    whereabouts.Fate.BY_LIBVIRT: "restored by libvirt",
    whereabouts.Fate.RESTORED: "the image has been restored before",
    whereabouts.Fate.GONE: "gone: libvirt has restored or removed its managed save",
}
# Seconds that libvirt may take to restore a guest by itself, and between two looks.
_RESTORING = 600.0
_AGAIN = 0.5
# With QEMU in these the guest does not run: it waits for its memory, or has left it in an image.
_NOT_ALIVE = frozenset((None, "inmigrate", "postmigrate"))


class Line(TypedDict):
    """One guest of a restore-all, as its summary has it."""

    guest: str
    image: str
    outcome: Outcome
    note: str | None
    result: Facts | None
    error: errors.ErrorDict | None
    discarded: bool
    ran: bool
    priority: int


@dataclasses.dataclass
class Return:
    """One entry of the record, ``planned`` until it is dealt with; ``note`` says why it was not.

    ``is_by_libvirt``: libvirt has restored the guest, which is alive.
    """

    entry: Entry
    outcome: Outcome = "planned"
    note: str | None = None
    result: RestoreResult | None = None
    error: errors.MapsaveError | None = None
    discarded: bool = False
    is_by_libvirt: bool = False

    def plan_again(self) -> None:
        """Take a failure back, for another try."""
        self.outcome, self.error = "planned", None

    def fail(self, error: errors.MapsaveError) -> None:
        """Record what stood against the restore."""
        self.outcome, self.error = "failed", error

    def pass_over(self, how: Outcome, note: str) -> None:
        """Record that there is nothing to restore, and why."""
        self.outcome, self.note = how, note

    def line(self) -> Line:
        """Return the entry's line in the summary."""
        return {
            "guest": self.entry.guest,
            "image": self.entry.image,
            "outcome": self.outcome,
            "note": self.note,
            "result": self.result.as_dict() if self.result else None,
            "error": self.error.as_dict() if self.error else None,
            "discarded": self.discarded,
            "ran": self.entry.ran,
            "priority": self.entry.priority,
        }


def planned(kept: Record) -> list[Return]:
    """Return the entries in the order of their restores; among equals as they were saved."""
    return [Return(entry) for entry in sorted(kept.entries, key=lambda entry: -entry.priority)]


async def look(config: Config, line: Return) -> None:
    """See whether there is anything to restore; the line stays ``planned`` only if there is."""
    entry = line.entry
    try:
        guest = configured(config, entry.guest)
        note = await answering.within(config.images, _managed, config, entry)
        run_state = await _run_state(guest, config, is_managed=note is not None)
        fate = None
        if note is not None:
            fate = await answering.within(config.images, _gone, config, note)
        if note is not None and fate is not None:
            line.pass_over("skipped", _GONE[fate])
            line.is_by_libvirt = fate is whereabouts.Fate.BY_LIBVIRT and run_state is not None
            return
        if run_state not in _NOT_ALIVE:
            stale = f"the guest is already {run_state}, so its image is stale"
            if note is not None:
                remove = f"mapsave discard --yes {shlex.quote(note.image)}"
                stale += f"; libvirt would restore it at the next start: {remove}"
            line.pass_over("skipped", stale)
            return
        state = await answering.within(config.images, _state_of, config, entry)
        if state is None:
            line.pass_over("not_saved", "its save did not complete; there is nothing to restore")
        elif state is State.RESTORED:
            line.pass_over("skipped", "the image has been restored before")
    except errors.MapsaveError as error:
        line.fail(error)


async def _run_state(guest: Guest | None, config: Config, *, is_managed: bool) -> str | None:
    """Return a guest's run state; wait for one of which libvirt is restoring a managed save."""
    if guest is None:
        return None
    deadline = time.monotonic() + _RESTORING
    while True:
        found = await guests.run_state(guest, config)
        if not is_managed or found != "inmigrate" or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_AGAIN)


async def let_go(config: Config, line: Return) -> None:
    """Have the QEMU of a guest that libvirt has restored close the image, as libvirt does not."""
    from mapsave.operations import destination_libvirt

    guest = config.guest(line.entry.guest)
    try:
        async with attach.exclusive(guest, config) as (session, _):
            await destination_libvirt.let_go(session)
    except errors.MapsaveError as error:
        _log.warning("guest %s: its QEMU keeps the image open: %s", guest.name, error)


def _managed(config: Config, entry: Entry) -> whereabouts.Note | None:
    found = whereabouts.at(config.state, entry.image)
    return found if found is not None and found.managed else None


def _gone(config: Config, note: whereabouts.Note) -> whereabouts.Fate | None:
    """Return what became of a managed save; None while it is there. Raises UnreadableImage."""
    try:
        fate = whereabouts.fate(config.state, note)
    except OSError as error:
        raise descriptors.unreadable(note.image, error) from None
    return None if fate is whereabouts.Fate.SAVED else fate


def is_locked(config: Config, entry: Entry) -> bool:
    """Return whether another mapsave is at the guest of an entry, or at its image. Blocks.

    What cannot be found out is no lock: the restore says what is wrong.
    """
    try:
        keys = _keys(config, entry)
        # Clones of its image that are being started share the image's lock.
        return any(locks.is_held(config.state, key, exclusive=True) for key in keys)
    except (OSError, errors.MapsaveError):
        return False


def _keys(config: Config, entry: Entry) -> Iterator[str]:
    guest = configured(config, entry.guest)
    if guest is not None and (guest.qmp is not None or guest.emulator is not None):
        yield attach.Monitor.at(attach.socket_path(guest, config)).key
    with contextlib.suppress(errors.MapsaveError), image.opened(entry.image) as opened:
        yield locks.image_key(opened.block.uuid)
        if uuid := opened.metadata.get("guest", {}).get("uuid"):
            yield attach.Monitor(domain=uuid).key  # of a libvirt guest


def configured(config: Config, name: str) -> Guest | None:
    """Return the guest of a name or an address; None where it is not configured any more."""
    try:
        return config.guest(name)
    except errors.UnknownGuest:
        return None


def _state_of(config: Config, entry: Entry) -> State | None:
    """Return the state of the entry's image; None where the save never came to one.

    Raises ImageNotFound, PartialImage and their kin; Refused where it is another image.
    """
    if not entry.is_committed and not entry.has_image():
        return None
    if not entry.is_committed and not os.path.lexists(entry.image):
        raise errors.PartialImage(
            f"{entry.image!r} was never completed",
            hint="'mapsave recover' completes or removes what an interrupted save left",
        )
    with image.opened(entry.image) as opened:
        if entry.uuid not in (None, str(opened.block.uuid)):
            raise errors.Refused(
                f"{entry.image!r} is not the image that was saved there",
                hint="if that image is lost, start the guest; its entry is then dropped from "
                "the record",
            )
        used = restored_notes.is_used(config.state, opened)
        return State.RESTORED if used else opened.block.state
