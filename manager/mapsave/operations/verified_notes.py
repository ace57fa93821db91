"""What was found when the data of images was compared with its digests last, and how far it is.

A note is a small file in the state directory, for the uuid and the inode of an image: a copy of the
image is a file of its own, and may be good where the other is damaged. A note that is lost or
damaged means that the image was never verified.
"""

import contextlib
import enum
import hashlib
import logging
import os
import time
import uuid as uuids
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TypedDict

import msgspec

from mapsave import errors, strict_json, typed, units
from mapsave.errors import ErrorDict
from mapsave.image.image import Image
from mapsave.operations import locks
from mapsave.strict_json import Facts

_log = logging.getLogger(__name__)

_KIND = "verified"
_MOST = 1 << 20  # bytes of a note
_PLACES = 100  # damaged places that a note lists
_DIGEST = 64  # characters of a SHA-256


class Outcome(enum.StrEnum):
    """What came of a look at an image: all its data is as its digests say, some is not, it could
    not be read, or it has none and only its structure was verified."""

    VERIFIED = "verified"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    UNDIGESTED = "without_digests"

    @property
    def is_bad(self) -> bool:
        """Whether the image cannot be relied on."""
        return self in (Outcome.DAMAGED, Outcome.UNREADABLE)


class Place(TypedDict):
    """Where data differs: ``length`` bytes of the file from ``offset``.

    ``block`` is the RAM block whose pages are there, ``address`` the first of them within it, and
    ``ram_bytes`` their length. None and 0 where no pages are, or it cannot be told.
    """

    offset: int
    length: int
    block: str | None
    address: int | None
    ram_bytes: int


class UnderWay(msgspec.Struct, frozen=True):
    """A look that has not ended: up to ``position`` of the file it is done.

    ``bytes`` of data were compared by then with the ``digests`` of that hash; ``places`` differ,
    or the first of ``count``.
    """

    digests: str
    position: int
    bytes: int
    places: tuple[Place, ...] = ()
    count: int = 0


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image, of the path ``image`` then.

    The last look that ended had that ``outcome`` at ``time`` (seconds since the epoch), when the
    file had been ``changed`` last (its mtime in nanoseconds). ``bytes`` had the digests that they
    should; ``error`` says why not all, as ``verify --data`` does.
    """

    image: str
    outcome: Outcome | None = None
    time: float = 0.0
    changed: int = 0
    bytes: int = 0
    error: ErrorDict | None = None
    under_way: UnderWay | None = None

    @property
    def is_bad(self) -> bool:
        """Whether the last look that ended found that the image cannot be relied on."""
        return self.outcome is not None and self.outcome.is_bad

    def shown(self) -> Facts | None:
        """Return what listings show of it; None where no look has ended."""
        if self.outcome is None:
            return None
        return {
            "outcome": self.outcome.value,
            "time": units.timestamp(self.time),
            "bytes": self.bytes,
            "error": self.error,
        }


class Known:
    """The notes of all images, each of which is read once it is asked for."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._names = frozenset(_names(state))

    def get(self, uuid: uuids.UUID | None, inode: int) -> Note | None:
        """Return the note of an image; None where there is none."""
        name = key(uuid, inode) if uuid is not None else ""
        return read(self._state, name) if name in self._names else None


def key(uuid: uuids.UUID, inode: int) -> str:
    """Return the name of the note of an image."""
    return f"{uuid}-{inode}"


def key_of(opened: Image) -> str:
    """Return the name of the note of an open image."""
    return key(opened.block.uuid, os.fstat(opened.fd).st_ino)


def directory(state: Path) -> Path:
    """Return where the notes are."""
    return state / _KIND


def _names(state: Path) -> list[str]:
    try:
        return os.listdir(directory(state))
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.warning("cannot read %s: %s", directory(state), error.strerror)
        return []


def read(state: Path, name: str) -> Note | None:
    """Return the note of that ``key``; None where there is none that can be used. Never raises."""
    where = directory(state) / name
    try:
        with open(where, "rb") as file:
            raw = file.read(_MOST)
        digest, data = raw[:_DIGEST], raw[_DIGEST:]
        if hashlib.sha256(data).hexdigest().encode() != digest:
            raise ValueError("its digest does not match")
        return typed.convert(strict_json.decoded(data), Note)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("the note %s is not used, its image counts as not verified: %s", where, error)
        return None


def write(state: Path, name: str, note: Note) -> None:
    """Write a note, in place of the one before. That it could not be is logged; never raises."""
    try:
        where = locks.state_directory(state, _KIND) / name
        data = strict_json.encoded(msgspec.to_builtins(note))
        locks.replace(where, hashlib.sha256(data).hexdigest().encode() + data)
    except (OSError, ValueError, errors.MapsaveError) as error:
        _log.warning("what was found of %s is not noted: %s", note.image, error)


def note_end(
    state: Path,
    opened: Image,
    outcome: Outcome,
    *,
    verified: int = 0,
    error: errors.MapsaveError | None = None,
) -> None:
    """Note what a look at an image found; ``verified`` bytes were as they should be.

    ``error`` says what is wrong with it. Never raises.
    """
    try:
        name, changed = key_of(opened), os.fstat(opened.fd).st_mtime_ns
    except OSError as failed:  # its storage has failed, and may have gone
        _log.warning("what was found of %s is not noted: %s", opened.path, failed.strerror)
        return
    found = Note(
        image=os.path.realpath(opened.path),
        outcome=outcome,
        time=time.time(),
        changed=changed,
        bytes=verified,
        error=_short(error) if error is not None else None,
    )
    write(state, name, found)


def _short(error: errors.MapsaveError) -> ErrorDict:
    found = error.as_dict()
    places = found["data"].get("damaged")
    if isinstance(places, list):
        found["data"] = {**found["data"], "damaged": places[:_PLACES]}
    return found


def note_failure(
    state: Path, path: str, name: str, error: errors.MapsaveError, *, changed: int
) -> None:
    """Note that the image of that ``key`` could not be looked at. Never raises."""
    before = read(state, name)
    found = Note(
        image=os.path.realpath(path),
        outcome=outcome_of(error),
        time=time.time(),
        changed=changed,
        error=_short(error),
        under_way=before.under_way if before is not None else None,
    )
    write(state, name, found)


def note_under_way(state: Path, path: str, name: str, under_way: UnderWay) -> None:
    """Note how far a look at the image of that ``key`` is. Never raises."""
    before = read(state, name) or Note(image=os.path.realpath(path))
    shown = msgspec.structs.replace(under_way, places=under_way.places[:_PLACES])
    write(state, name, msgspec.structs.replace(before, under_way=shown))


@contextlib.contextmanager
def noting_failure(state: Path, opened: Image) -> Iterator[None]:
    """Note that an image is damaged or unreadable where that is raised within.

    Not where it is not complete, or its digests are of a newer mapsave, which says nothing of it.
    """
    try:
        yield
    except (errors.PartialImage, errors.UnsupportedImage):
        raise
    except errors.InvalidImage as error:
        note_end(state, opened, outcome_of(error), error=error)
        raise


def outcome_of(error: errors.MapsaveError) -> Outcome:
    """Return what an error makes of an image."""
    is_damaged = isinstance(error, errors.InvalidImage)
    if is_damaged and not isinstance(error, errors.UnreadableImage):
        return Outcome.DAMAGED
    return Outcome.UNREADABLE


def forget(state: Path, uuid: uuids.UUID, inode: int) -> None:
    """Remove the note of an image that is gone, as far as that can be done."""
    with contextlib.suppress(OSError):
        (directory(state) / key(uuid, inode)).unlink()


def forget_gone(state: Path, present: Container[str]) -> None:
    """Remove notes of images that are gone: not among those ``present``, by ``key``, nor where they
    were."""
    for name in _names(state):
        if name in present:
            continue
        found = read(state, name)
        if found is None or not os.path.lexists(found.image):
            with contextlib.suppress(OSError):
                (directory(state) / name).unlink()


def failure(note: Note | None) -> errors.MapsaveError | None:
    """Return the error that an image was found with last; None where it was good, or is unknown."""
    if note is None or not note.is_bad:
        return None
    if note.error is not None:
        return errors.from_dict(note.error)
    return errors.InvalidImage(f"{note.image!r} was found {note.outcome}")


def check_undamaged(state: Path, opened: Image, *, force: bool) -> list[str]:
    """Raise DataDamaged where an image is known to be damaged; with ``force`` return a warning."""
    note = read(state, key_of(opened))
    error = failure(note)
    if note is None or error is None or note.outcome is not Outcome.DAMAGED:
        return []
    what = error.message.removeprefix(f"{note.image!r}: ")
    message = f"{opened.path!r} was found damaged at {units.timestamp(note.time)}: {what}"
    if force:
        return [message]
    raise errors.DataDamaged(
        message,
        hint="restore another image; 'mapsave verify --data' looks at it again, 'mapsave restore "
        "--force' restores it as it is",
        **error.data,
    )
