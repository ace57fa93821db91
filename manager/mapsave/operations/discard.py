"""Discard an image: never by accident, and never while it is in use."""

import datetime
import os

from mapsave import errors
from mapsave.config import Config
from mapsave.image import image, store
from mapsave.image.superblock import State
from mapsave.operations import images, locks, restored_notes


def discard(config: Config, path: str, *, unrestored: bool) -> dict[str, object]:
    """Delete the image at ``path``, be it damaged; one never restored only with ``unrestored``.

    Raises ImageNotFound, NotAnImage, Refused, Busy, NotPermitted.
    """
    directory, name = os.path.split(os.path.abspath(path))
    with store.directory(directory) as held:
        key, state, allocated = _look(config, path)
        if state is State.PARTIAL and not image.is_abandoned(held.fd, name):
            raise errors.Busy(f"{path!r} is being written")
        if state is State.SAVED and not unrestored:
            copy = ": it is the only copy of its guest" if _is_guest(config, held, name) else ""
            raise errors.Refused(
                f"{path!r} was never restored{copy}",
                hint="'mapsave discard --yes' deletes it anyway",
            )
        with locks.held(config.state, f"image {path!r}", key):
            try:
                os.unlink(name, dir_fd=held.fd)
            except PermissionError as error:
                raise errors.denied(
                    f"cannot delete {path!r}: {error.strerror}", held.path, os.W_OK | os.X_OK
                ) from None
            os.fsync(held.fd)
    return {"image": path, "freed_bytes": allocated}


def _is_guest(config: Config, held: store.Directory, name: str) -> bool:
    """Return whether the guest is in that image alone: it was shut down, and not saved later."""
    entries = store.entries(held, restored=restored_notes.noted(config.state))
    entry = next((each for each in entries if each.name == name), None)
    if entry is None:
        return False
    now = datetime.datetime.now(datetime.UTC)
    return images.is_guest(entry, images.last_saved(entries, entry.guest, now))


def _look(config: Config, path: str) -> tuple[str, State | None, int]:
    """Return the image's lock key, its state (None where damaged) and its bytes on disk."""
    try:
        with image.opened(path) as opened:
            block = restored_notes.block_as_used(config.state, opened)
            return locks.image_key(block.uuid), block.state, opened.allocated
    except errors.NotAnImage:
        raise
    except errors.InvalidImage:
        return f"image:{os.path.realpath(path)}", None, os.stat(path).st_blocks * 512
