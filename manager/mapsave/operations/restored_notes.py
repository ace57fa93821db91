"""Which images were restored, or are stale: noted in the state directory as well as in the image.

An image on a read-only file system cannot be marked, and a copy of one that was made before its
restore is not. Both have the uuid by which it is noted here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import uuid as uuids
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import blocking, errors
from mapsave.operations import image_notes

if TYPE_CHECKING:
    # Who only asks what is noted, as ``guard`` does, needs neither.
    from mapsave.image.image import Image
    from mapsave.image.superblock import State, Superblock

_log = logging.getLogger(__name__)
_NOTES = image_notes.Notes("restored")
MARKING = 20.0  # seconds that an image may take to be marked: its guest waits for it


def noted(state: Path) -> frozenset[uuids.UUID]:
    """Return the uuids of all images that are noted; of none where the notes cannot be read."""
    return _NOTES.known(state)


def is_noted(state: Path, uuid: uuids.UUID) -> bool:
    """Return whether the image of that uuid was restored. Raises OSError."""
    return _NOTES.has(state, uuid)


def block_as_used(state: Path | None, opened: Image) -> Superblock:
    """Return an image's superblock; its state is restored where that is noted, if it can be read.

    To look up one image costs the same however many notes there are.
    """
    uuid = opened.block.uuid
    with contextlib.suppress(OSError):
        if state is not None and is_noted(state, uuid):
            return opened.block_as_used({uuid})
    return opened.block


def is_used(state: Path, opened: Image) -> bool:
    """Return whether an image, or a copy of it, was restored, or is stale.

    Raises Refused, NotPermitted.
    """
    from mapsave.image.superblock import State

    try:
        return opened.block.state is State.RESTORED or is_noted(state, opened.block.uuid)
    except OSError as error:
        raise errors.of_os_error(
            error,
            f"cannot check in {str(_NOTES.directory(state))!r} whether {opened.path!r} was "
            f"restored: {error.strerror}",
            _NOTES.path(state, opened.block.uuid),
            otherwise=errors.Refused,
            hint="fix that, or restore it with --again if you know that it was not",
        ) from None


def check_unused(state: Path, opened: Image) -> None:
    """Raise AlreadyRestored where an image was restored, or is stale; also as ``is_used`` does."""
    from mapsave.image.superblock import State

    if not is_used(state, opened):
        return
    words = "has been restored before"
    if opened.block.state is not State.RESTORED:
        words = "has been restored before, itself or a copy of it, according to the state directory"
    if opened.metadata.get("continued"):
        words = "is stale: another client resumed its guest during the save"
    raise errors.AlreadyRestored(
        f"{opened.path!r} {words}",
        hint="its disks have changed since; --again restores it anyway",
    )


def mark(state: Path, opened: Image) -> str | None:
    """Record durably, in the image and here, that its guest is about to run.

    Returns a warning where only one of both could be written. Raises OSError where neither could.
    """
    from mapsave.image.superblock import State

    uuid, mark = opened.block.uuid, functools.partial(opened.mark, State.RESTORED)
    return _both(state, opened.path, uuid, "restored", mark)


def mark_stale(
    state: Path, path: str, uuid: uuids.UUID, marking: Callable[[], object]
) -> str | None:
    """Record the same of an image whose guest was resumed since: ``marking`` does in the image.

    Returns a warning where one of both could not be written; never raises.
    """
    try:
        return _both(state, path, uuid, "stale", marking)
    except OSError as error:
        return f"{path!r} could not be marked as stale ({error.strerror}): do not restore it"


def unmark(state: Path, opened: Image, before: State, *, was_noted: bool) -> None:
    """Take ``mark`` back, as far as that can be done: the guest has not run."""
    try:
        if not was_noted:
            _NOTES.path(state, opened.block.uuid).unlink(missing_ok=True)
        if opened.block.state is not before:
            blocking.joined(MARKING, opened.mark, before)
    except OSError as error:
        _log.warning("%s: still marked as restored: %s", opened.path, error.strerror)


def _both(
    state: Path, path: str, uuid: uuids.UUID, what: str, marking: Callable[[], object]
) -> str | None:
    unnoted: Exception | None = None
    try:
        _NOTES.add(state, path, uuid, what)
    except (OSError, errors.MapsaveError) as error:
        unnoted = error
    try:
        blocking.joined(MARKING, marking)
    except (OSError, errors.InvalidImage) as error:
        if unnoted is None:
            return (
                f"{path!r} could not be marked as {what} ({_words(error)}); it is recorded in "
                f"{str(_NOTES.directory(state))!r}: only a mapsave that uses that state directory "
                "refuses it"
            )
        words = f"neither in the image ({_words(error)}) nor in the state directory"
        both = (error, unnoted)
        is_denied = all(isinstance(each, PermissionError | errors.NotPermitted) for each in both)
        number = errno.EACCES if is_denied else errno.EIO
        raise OSError(number, f"{words} ({_words(unnoted)})") from None
    if unnoted is None:
        return None
    return (
        f"{path!r} is marked as {what}, but that could not be recorded in "
        f"{str(_NOTES.directory(state))!r} ({_words(unnoted)}): a copy of it would not be refused"
    )


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
