"""Discard an image: never by accident, and never while it is in use."""

from __future__ import annotations

import os

from mapsave import errors
from mapsave.config import Config
from mapsave.image import image, store
from mapsave.image.superblock import State
from mapsave.operations import locks, restored_notes


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
            raise errors.Refused(
                f"{path!r} was never restored: it is the only copy of its guest's memory",
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
