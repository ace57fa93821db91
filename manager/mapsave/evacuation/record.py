"""What save-all has saved and restore-all has to bring back: ``save-all.json`` in the state.

A guest is written down before its save begins, with the image that it will get, and again once the
image is committed. So whatever moment the host loses power in, no image is without its line, and a
line without an image means that the guest was not saved. Each version replaces the last one whole
(rename(2)), and is on stable storage with its directory.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Container, Iterator
from pathlib import Path

import msgspec
from msgspec import structs

from mapsave import errors, shielded, strict_json, typed
from mapsave.image import image, partial_names, store
from mapsave.operations import locks

_log = logging.getLogger(__name__)

NAME = "save-all.json"
_VERSION = 1


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A guest that was saved, or is about to be: then without ``uuid`` and ``time``.

    ``ran`` is whether it ran, ``uuid`` is the image's, ``time`` when the image was committed, in
    seconds since the epoch.
    """

    guest: str
    image: str
    ran: bool
    priority: int = 0
    uuid: str | None = None
    time: float | None = None

    @property
    def is_committed(self) -> bool:
        """Whether its image was seen committed."""
        return self.time is not None

    def has_image(self) -> bool:
        """Return whether its image is there, or a partial one that ``mapsave recover``
        completes."""
        directory, name = os.path.split(self.image)
        partial = os.path.join(directory, partial_names.partial_name(name))
        return os.path.lexists(self.image) or os.path.lexists(partial)


class _File(msgspec.Struct):
    version: int
    guests: tuple[Entry, ...]


class Record:
    """The record of one state directory. Get one from ``held``."""

    def __init__(self, path: Path, entries: tuple[Entry, ...]) -> None:
        self.path = path
        self.entries = entries
        self._writing = asyncio.Lock()

    def plan(self, entries: list[Entry]) -> None:
        """Add guests that are about to be saved."""
        self.entries += tuple(entries)

    def keep(self, guest: str, image: store.Entry, priority: int) -> None:
        """Add a paused guest that an earlier save has left in ``image``, if it is not there."""
        if image.block is None or any(entry.image == image.path for entry in self.entries):
            return
        added = Entry(
            guest=guest,
            image=image.path,
            ran=False,
            priority=priority,
            uuid=str(image.block.uuid),
            time=image.modified,
        )
        self.entries = (*(entry for entry in self.entries if entry.guest != guest), added)

    def commit(self, guest: str, path: str) -> None:
        """Note that the image of ``guest`` at ``path`` is committed; older ones of it go."""
        with image.opened(path) as opened:
            uuid = str(opened.block.uuid)
        self.entries = tuple(
            structs.replace(entry, uuid=uuid, time=time.time()) if entry.image == path else entry
            for entry in self.entries
            if entry.guest != guest or entry.image == path
        )

    def forget(self, guests: Container[str]) -> None:
        """Drop what is known of ``guests``: they run, so that their images are stale."""
        self.entries = tuple(entry for entry in self.entries if entry.guest not in guests)

    def drop(self, entry: Entry) -> None:
        """Drop one entry: its guest is back, or there is nothing to bring back."""
        self.entries = tuple(each for each in self.entries if each != entry)

    def tidy(self) -> None:
        """Drop the guests that were not saved after all."""
        self.entries = tuple(
            entry for entry in self.entries if entry.is_committed or entry.has_image()
        )

    async def write(self) -> None:
        """Bring the record to stable storage, off the event loop. Raises OSError."""
        async with self._writing:
            await shielded.in_time(_replace, self.path, self.entries)


@contextlib.contextmanager
def hold(state: Path, *, set_aside: bool = False) -> Iterator[Record]:
    """Yield the record of ``state``; no one else works with it in the meantime.

    With ``set_aside`` a record that cannot be read is renamed and ignored. Raises Busy,
    NotPermitted, ConfigMissing, and as ``load`` does.
    """
    with locks.held(state, "the fleet of guests", f"fleet:{os.path.realpath(state)}"):
        try:
            loaded = load(state)
        except errors.Refused:
            if not set_aside:
                raise
            aside = state / f"{NAME}.unreadable"
            if aside.is_dir() or (state / NAME).is_dir():  # rename(2) replaces files by files only
                aside = state / f"{NAME}.unreadable-{time.time_ns()}"
            with locks.state_errors(f"rename {str(state / NAME)!r}", state):
                (state / NAME).rename(aside)
            _log.warning("%s cannot be read; set aside as %s", state / NAME, aside)
            loaded = load(state)
        yield loaded


def load(state: Path) -> Record:
    """Return the record of ``state``, an empty one where there is none.

    Raises Refused where it is damaged or of a newer version, NotPermitted.
    """
    path = state / NAME
    try:
        found = typed.convert(strict_json.loads(path.read_bytes()), _File)
        if found.version != _VERSION:
            raise ValueError(f"version {found.version!r}, not {_VERSION}")
        return Record(path, found.guests)
    except FileNotFoundError:
        return Record(path, ())
    except PermissionError as error:
        raise errors.denied(f"cannot read {str(path)!r}: {error.strerror}", path) from None
    except (OSError, ValueError) as error:  # msgspec.ValidationError is one
        raise errors.Refused(
            f"{str(path)!r} is not a save-all record that this version can read: {error}",
            hint="'mapsave list' shows the images, 'mapsave restore' restores them one by one; "
            "then remove the file",
        ) from None


def _replace(path: Path, entries: tuple[Entry, ...]) -> None:
    """Replace the file by ``entries``; without any, remove it. Both are durable."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if entries:
            guests = [structs.asdict(other) for other in entries]
            text = json.dumps({"version": _VERSION, "guests": guests}, indent=1) + "\n"
            new = path.with_name(path.name + ".new")
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.rename(new, path)
        else:
            path.unlink(missing_ok=True)
        os.fsync(directory)
    finally:
        os.close(directory)
