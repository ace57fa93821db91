"""Pinned images: neither retention nor ``discard`` deletes one, and no save replaces it.

A pin is a note in the state directory, durable when ``pin`` returns. It holds for the image by any
name, and for its copies.
"""

import contextlib
import os
import uuid as uuids
from pathlib import Path

from mapsave import errors
from mapsave.config import Config
from mapsave.image import image, store
from mapsave.image.image import Image
from mapsave.image.superblock import State
from mapsave.operations import image_notes, locks

_NOTES = image_notes.Notes("pinned")


def pin(config: Config, path: str) -> dict[str, object]:
    """Pin the image at ``path``; return it and its uuid. One that is pinned stays so.

    Raises ImageNotFound, InvalidImage, PartialImage, Busy, Refused, NotPermitted.
    """
    with image.opened(path) as opened, _locked(config, opened):
        if opened.block.state is State.PARTIAL:
            raise errors.PartialImage(f"{path!r} is not complete, so it is not pinned")
        try:
            _NOTES.add(config.state, opened.path, opened.block.uuid, "pinned")
        except OSError as error:
            raise _failed(config.state, "pin", error) from None
        return {"image": opened.path, "uuid": str(opened.block.uuid), "pinned": True}


def unpin(config: Config, path: str) -> dict[str, object]:
    """Let the image at ``path`` be deleted again. Raises as ``pin`` does."""
    with image.opened(path) as opened, _locked(config, opened):
        try:
            _NOTES.remove(config.state, opened.block.uuid)
        except OSError as error:
            raise _failed(config.state, "unpin", error) from None
        return {"image": opened.path, "uuid": str(opened.block.uuid), "pinned": False}


def pinned(state: Path) -> frozenset[uuids.UUID]:
    """Return the uuids of the images that are pinned. Raises Refused, NotPermitted."""
    try:
        return _NOTES.all(state)
    except OSError as error:
        raise _failed(state, "look for pinned", error) from None


def shown(state: Path) -> frozenset[uuids.UUID]:
    """Return what ``pinned`` does, for a listing: nothing where that cannot be read."""
    return _NOTES.known(state)


def is_pinned(state: Path, uuid: uuids.UUID) -> bool:
    """Return whether an image is pinned. Raises Refused, NotPermitted."""
    try:
        return _NOTES.has(state, uuid)
    except OSError as error:
        raise _failed(state, "look for pinned", error) from None


def refuse_replacing(state: Path, held: store.Directory, name: str) -> None:
    """Raise ImageExists where ``name`` is a pinned image; Refused, NotPermitted."""
    path = os.path.join(held.path, name)
    try:
        with image.opened(path) as opened:
            uuid = opened.block.uuid
    except (errors.ImageNotFound, errors.InvalidImage):
        return  # there is none that could be pinned
    if is_pinned(state, uuid):
        raise errors.ImageExists(
            f"{path!r} is pinned, so it is not replaced",
            hint=f"choose another name, or run 'mapsave unpin {name}'",
        )


def _locked(config: Config, opened: Image) -> contextlib.AbstractContextManager[None]:
    """Hold the image's lock: what deletes it holds that, and looks for a pin."""
    what = f"image {opened.path!r}"
    return locks.held(config.state, what, locks.image_key(opened.block.uuid))


def _failed(state: Path, work: str, error: OSError) -> errors.MapsaveError:
    return errors.of_os_error(
        error,
        f"cannot {work} images in {str(_NOTES.directory(state))!r}: {error.strerror}",
        _NOTES.directory(state),
        otherwise=errors.Refused,
        hint="fix that, or set 'state:' in the configuration",
    )
