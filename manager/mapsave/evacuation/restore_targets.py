"""The guests of restore-all: what the record says of them, and whether there is anything to do."""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Literal, TypedDict

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.evacuation import guests
from mapsave.evacuation.record import Entry, Record
from mapsave.image import image
from mapsave.image.superblock import State
from mapsave.operations import attach, locks, restored_notes
from mapsave.operations.results import RestoreResult
from mapsave.strict_json import Facts

Outcome = Literal["planned", "restored", "failed", "skipped", "not_saved"]

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
    """One entry of the record, ``planned`` until it is dealt with; ``note`` says why it was not."""

    entry: Entry
    outcome: Outcome = "planned"
    note: str | None = None
    result: RestoreResult | None = None
    error: errors.MapsaveError | None = None
    discarded: bool = False

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
        run_state = await guests.run_state(guest, config) if guest is not None else None
        if run_state not in _NOT_ALIVE:
            line.pass_over("skipped", f"the guest is already {run_state}, so its image is stale")
            return
        state = await asyncio.to_thread(_state_of, config, entry)
        if state is None:
            line.pass_over("not_saved", "its save did not complete; there is nothing to restore")
        elif state is State.RESTORED:
            line.pass_over("skipped", "the image has been restored before")
    except errors.MapsaveError as error:
        line.fail(error)


def is_locked(config: Config, entry: Entry) -> bool:
    """Return whether another mapsave is at the guest of an entry, or at its image. Blocks.

    What cannot be found out is no lock: the restore says what is wrong.
    """
    try:
        return any(locks.is_held(config.state, key) for key in _keys(config, entry))
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
