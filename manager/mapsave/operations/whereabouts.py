"""Where the guests are that were saved and shut down: noted in the state directory.

The last save of each guest counts. A restore by mapsave is known from ``restored_notes``. libvirt
restores and removes a managed save without a word to us, so its file says what became of it.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import hashlib
import logging
import os
import time
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from mapsave import errors, typed
from mapsave.image import ownership
from mapsave.operations import locks, restored_notes, trust

if TYPE_CHECKING:
    from mapsave.image.image import Image

_log = logging.getLogger(__name__)
_DIRECTORY = "whereabouts"
_LIBVIRTS = "opaque=libvirt-incoming-migrate"  # libvirt 11.3, qemu_fd.c, qemu_process.c


class Fate(enum.StrEnum):
    """What became of the image of a guest that was saved and shut down."""

    SAVED = "saved"
    RESTORED = "restored"
    BY_LIBVIRT = "restored by libvirt"
    GONE = "gone"


class Note(msgspec.Struct, frozen=True):
    """A guest in an image, whose path and uuid these are.

    ``key`` is that of its monitor, by which locks name it too; ``domain`` is the name of a libvirt
    domain. ``time`` is when the save began, in seconds since the epoch. ``by_libvirt``: libvirt was
    seen to have restored it.
    """

    guest: str
    key: str
    domain: str | None
    image: str
    uuid: str
    time: float
    managed: bool = False
    by_libvirt: bool = False


def _path(state: Path, key: str) -> Path:
    return state / _DIRECTORY / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.json"


def committed(state: Path, note: Note, *, stays: bool) -> str | None:
    """Note the image that was just committed; return a warning where that failed.

    With ``stays`` its guest was not shut down: then what was noted of it before goes.
    """
    try:
        if stays:
            _path(state, note.key).unlink(missing_ok=True)
        else:
            _write(state, note)
    except (OSError, errors.MapsaveError) as error:
        return unrecorded(note.image, error)
    return None


def unrecorded(path: str, error: Exception) -> str:
    """Return the warning about an image that ``error`` kept from being noted."""
    return (
        f"{path!r} could not be recorded as where its guest is ({error}): "
        "'mapsave guard' does not know of it"
    )


def began(metadata_time: object) -> float:
    """Return the time when a save began, as an image's metadata have it; now without one."""
    with contextlib.suppress(ValueError):
        return datetime.datetime.fromisoformat(str(metadata_time)).timestamp()
    return time.time()


def _write(state: Path, note: Note) -> None:
    path = _path(locks.state_directory(state, _DIRECTORY).parent, note.key)
    locks.replace(path, msgspec.json.encode(note).decode())
    locks.sync_directory(path.parent)


def forget(state: Path, note: Note) -> None:
    """Drop a note, as far as that can be done."""
    path = _path(state, note.key)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error.strerror)


def notes(state: Path) -> list[Note]:
    """Return all notes; none where they cannot be read, or others could have written them."""
    try:
        return list(read(state))
    except OSError as error:
        _log.warning("cannot read %s: %s", state / _DIRECTORY, error.strerror)
        return []


def read(state: Path) -> Iterator[Note]:
    """Yield all notes but those that are damaged, or others could have written. Raises OSError."""
    try:
        names = sorted(os.listdir(state / _DIRECTORY))
    except FileNotFoundError:
        return
    for name in names:
        path = state / _DIRECTORY / name
        if path.suffix != ".json":
            continue
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if ownership.of_file(str(path), file.fileno(), trust.users()):
                _log.warning("%s is writable by others and was ignored", path)
                continue
            try:
                yield typed.decode(file.read(), Note)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                _log.warning("cannot read %s: %s", path, error)


def managed(state: Path) -> list[Note]:
    """Return the notes of managed saves."""
    return [each for each in notes(state) if each.managed]


def at(state: Path, path: str) -> Note | None:
    """Return the note of the image at ``path``."""
    return next((each for each in notes(state) if each.image == path), None)


def managed_save_of(state: Path, opened: Image) -> Note | None:
    """Return the note of the managed save that an image is, or is a copy of."""
    uuid = str(opened.block.uuid)
    return next((each for each in managed(state) if each.uuid == uuid), None)


def last_managed(state: Path, guest: str | None) -> Note | None:
    """Return the last managed save of a guest, by its name."""
    found = (each for each in managed(state) if each.guest == guest)
    return max(found, key=lambda note: note.time, default=None)


def fate(state: Path, note: Note) -> Fate:
    """Return what became of an image. Raises OSError, UnreadableImage, NotPermitted if unseen.

    A QEMU for which libvirt has read an image shows its descriptor on the command line. The first
    who sees that writes it down, for the guest may be shut down the next time.
    """
    from mapsave.image import image  # which few need, and takes long to load

    uuid = uuids.UUID(note.uuid)
    is_restored = restored_notes.is_noted(state, uuid)
    os.stat(os.path.dirname(note.image))
    if is_restored and not note.managed:
        return Fate.RESTORED
    if os.path.lexists(note.image):
        try:
            with image.opened(note.image) as opened:
                if opened.block.uuid == uuid:
                    is_used = is_restored or opened.block.state.word == Fate.RESTORED
                    return Fate.RESTORED if is_used else Fate.SAVED
        except (errors.UnreadableImage, errors.NotPermitted):
            raise
        except errors.ImageNotFound:
            pass
        except errors.InvalidImage:
            return Fate.SAVED  # damaged, and still there
    if is_restored:
        return Fate.RESTORED
    if note.by_libvirt:
        return Fate.BY_LIBVIRT
    if not note.managed or not _is_restored_by_libvirt(note):
        return Fate.GONE
    with contextlib.suppress(OSError, errors.MapsaveError):
        _write(state, structs.replace(note, by_libvirt=True))
    return Fate.BY_LIBVIRT


def _is_restored_by_libvirt(note: Note) -> bool:
    from mapsave.monitor import process

    pid = process.with_argument(note.key.rpartition(":")[2])  # the domain's uuid
    return pid is not None and any(_LIBVIRTS in each for each in process.command_line(pid))
