"""Discard an image: never by accident, and never while it is in use."""

import datetime
import os
import uuid as uuids

from mapsave import errors
from mapsave.config import Config
from mapsave.image import abandoned, image, store
from mapsave.image.superblock import State
from mapsave.operations import (
    exclusive,
    images,
    locks,
    managed_place,
    pins,
    restored_notes,
    verified_notes,
    whereabouts,
    working_sets,
)
from mapsave.operations import in_use as users_of


def discard(
    config: Config, path: str, *, unrestored: bool, in_use: bool = False
) -> dict[str, object]:
    """Delete the image at ``path``, be it damaged; one never restored only with ``unrestored``,
    one that a guest lives on only with ``in_use``, one that is pinned never.

    What other files share stays where it is (``shared_bytes``), the rest is freed. Raises
    ImageNotFound, NotAnImage, Refused, Busy, ImageInUse, NotPermitted.
    """
    directory, name = os.path.split(os.path.abspath(path))
    if not os.path.lexists(path):
        note = whereabouts.at(config.state, os.path.abspath(path))
        if note is not None:  # libvirt has restored or removed it, or it is lost
            whereabouts.forget(config.state, note)
            return {"image": path, "freed_bytes": 0, "shared_bytes": 0, "note": None}
    with store.directory(directory) as held:
        uuid, state, stats = _look(config, path)
        key = f"image:{os.path.realpath(path)}" if uuid is None else locks.image_key(uuid)
        if state is State.PARTIAL and not abandoned.is_abandoned(held.fd, name):
            raise errors.Busy(f"{path!r} is being written")
        if state is State.SAVED and not unrestored:
            copy = ": it is the only copy of its guest" if _is_guest(config, held, name) else ""
            raise errors.Refused(
                f"{path!r} was never restored{copy}",
                hint="'mapsave discard --yes' deletes it anyway",
            )
        with locks.held(config.state, f"image {path!r}", key):
            if uuid is not None and pins.is_pinned(config.state, uuid):
                raise errors.Refused(
                    f"{path!r} is pinned", hint=f"'mapsave unpin {name}' lets it be deleted"
                )
            users = _users(config, uuid, stats)
            note_of_space = users_of.check_removal(users, path, allowed=in_use)
            own = _own(path, stats)
            try:
                os.unlink(name, dir_fd=held.fd)
            except PermissionError as error:
                raise errors.denied(
                    f"cannot delete {path!r}: {error.strerror}", held.path, os.W_OK | os.X_OK
                ) from None
            os.fsync(held.fd)
            if uuid is not None:
                working_sets.forget(config.state, uuid)
                verified_notes.forget(config.state, uuid, stats.st_ino)
            if name.endswith(managed_place.SUFFIX):
                note = whereabouts.at(config.state, os.path.abspath(path))
                if note is not None:
                    whereabouts.forget(config.state, note)
    occupied = stats.st_blocks * 512
    freed = 0 if users else min(own, occupied)
    shared = max(occupied - own, 0)
    return {"image": path, "freed_bytes": freed, "shared_bytes": shared, "note": note_of_space}


def _own(path: str, stats: os.stat_result) -> int:
    """Return what no other file shares of an image; all that it occupies where no one says."""
    try:
        own = exclusive.looked(path)
    except OSError:
        own = None
    return stats.st_blocks * 512 if own is None else own


def _users(config: Config, uuid: uuids.UUID | None, stats: os.stat_result) -> list[users_of.User]:
    """Return who lives on an image; of one that is damaged that cannot be told."""
    if uuid is None:
        return []
    return users_of.of_file(users_of.everyone(config.state), str(uuid), stats.st_ino)


def _is_guest(config: Config, held: store.Directory, name: str) -> bool:
    """Return whether the guest is in that image alone: it was shut down, and not saved later."""
    entries = store.entries(held, restored=restored_notes.noted(config.state))
    entry = next((each for each in entries if each.name == name), None)
    if entry is None:
        return False
    now = datetime.datetime.now(datetime.UTC)
    managed = whereabouts.last_managed(config.state, entry.guest)
    return images.is_guest(entry, images.last_saved(entries, entry.guest, now, managed))


def _look(config: Config, path: str) -> tuple[uuids.UUID | None, State | None, os.stat_result]:
    """Return the image's uuid and state, None where it is damaged, and what fstat says of it."""
    try:
        with image.opened(path) as opened:
            block = restored_notes.block_as_used(config.state, opened)
            return block.uuid, block.state, os.fstat(opened.fd)
    except errors.NotAnImage:
        raise
    except errors.InvalidImage:
        return None, None, os.stat(path)
