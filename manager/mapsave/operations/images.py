"""The images of a directory: their paths, and what ``mapsave list --json`` and the service say."""

import datetime
import itertools
import os
from collections.abc import Iterable
from typing import TypedDict

from mapsave import errors
from mapsave.config import Config
from mapsave.image import store
from mapsave.image.store import Entry, EntryState
from mapsave.operations import (
    exclusive,
    image_index,
    in_use,
    pins,
    restored_notes,
    trust,
    verified_notes,
)
from mapsave.operations.whereabouts import Note
from mapsave.strict_json import Facts

_STAYS = ("resume", "leave")  # what ``then`` says where the guest itself outlived the save


def resolve(name: str, config: Config) -> str:
    """Return the path of an image given as a path, or as a name in the image directory."""
    if "/" in name or os.path.lexists(name):
        return os.path.abspath(name)
    return str(config.images / name)


def saved_at(entry: Entry) -> datetime.datetime | None:
    """Return when the save of an image began; None where its metadata lack it."""
    try:
        found = datetime.datetime.fromisoformat(str(entry.metadata.get("started")))
    except ValueError:
        return None
    return found if found.tzinfo else None


def last_saved(
    entries: Iterable[Entry],
    guest: str | None,
    now: datetime.datetime,
    managed: Note | None = None,
) -> datetime.datetime | None:
    """Return when the guest was last saved to a good image, by whichever job or by hand.

    It was running then, so it is in no image from before that. ``managed``: its last managed save,
    be it gone since.
    """
    good: Iterable[datetime.datetime | None] = (
        saved_at(entry)
        for entry in entries
        if entry.guest == guest and entry.state in (EntryState.SAVED, EntryState.RESTORED)
    )
    if managed is not None:
        by_libvirt = datetime.datetime.fromtimestamp(managed.time, datetime.UTC)
        good = itertools.chain(good, [by_libvirt])
    return max((when for when in good if when is not None and when <= now), default=None)


def is_guest(entry: Entry, last: datetime.datetime | None) -> bool:
    """Return whether an image is the guest itself, which was saved ``last`` at that time.

    Its QEMU was shut down by the save, nothing was restored, and no save came after it.
    """
    if entry.state is not EntryState.SAVED or entry.metadata.get("then") in _STAYS:
        return False
    when = saved_at(entry)
    return last is None or when is None or when >= last


class Listing(TypedDict):
    """The images of a directory."""

    directory: str
    images: list[Facts]


def listing(
    held: store.Directory,
    config: Config,
    guest: str | None = None,
    *,
    latest: bool = False,
    with_managed: bool = False,
) -> Listing:
    """Return the directory and a line for each image, newest first; see ``image_index.look``.

    ``guest`` and ``latest`` are as for ``image_index.Images.chosen``.
    """
    found = image_index.look(held, config.state, trust.users(), with_managed=with_managed)
    noted, pinned = restored_notes.noted(config.state), pins.shown(config.state)
    users, verified = in_use.shown(config.state), verified_notes.Known(config.state)
    chosen = found.chosen(guest, latest=latest)
    budget = exclusive.Budget()
    lines = [found.line(each, noted, pinned, users, verified, budget) for each in chosen]
    return {"directory": held.path, "images": lines}


def latest(listing: Listing, guest: str) -> Facts:
    """Return the line of the image of ``guest`` in a listing of latest images.

    Raises ImageNotFound.
    """
    for line in listing["images"]:
        if line["guest"] == guest:
            return line
    raise errors.ImageNotFound(
        f"no image of guest {guest!r} in {listing['directory']!r}",
        hint="'mapsave list' lists the images and their guests",
    )
