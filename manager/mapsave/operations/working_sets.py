"""Working sets: recorded of guests that live on images, found by the uuid of an image.

They are files in the state directory. One that is missing, damaged, stale, or could be a stranger's
costs time and nothing else: pages are read that no one needs, or are not read beforehand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import stat
import time
import uuid as uuids
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from bitarray import bitarray

from mapsave import blocking, errors
from mapsave.image import image, mapped_ram, ownership, working_set
from mapsave.image.image import Image
from mapsave.image.working_set import By, WorkingSet
from mapsave.monitor import mappings, pagemap
from mapsave.operations import in_use, locks, trust
from mapsave.operations.in_use import User

_PART = "working-sets"
_SUFFIX = ".set"
_MOST = 1000  # files
_AT_SAVE = 10.0  # seconds; 16 GiB of RAM take 30 ms of the processor
_log = logging.getLogger(__name__)


def path(state: Path, uuid: str) -> Path:
    """Return the file of the working set of the image of that uuid."""
    return state / _PART / f"{uuid}{_SUFFIX}"


def read(state: Path, uuid: uuids.UUID) -> WorkingSet | None:
    """Return the working set of an image; None where there is none that can be used.

    What is wrong with it is logged. Blocks briefly; never raises.
    """
    where = path(state, str(uuid))
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _read(where, str(uuid))
    except OSError as error:
        _log.warning("the working set %s cannot be read: %s", where, error.strerror)
    except ValueError as error:
        _log.warning("the working set %s is not used: %s", where, error)
    return None


def _read(where: Path, uuid: str) -> WorkingSet:
    """Raises OSError; ValueError, which says what is wrong."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(where, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        if found := ownership.of_file(str(where), file.fileno(), trust.users()):
            raise ValueError(found[0])
        known = working_set.decode(file.read(working_set.MOST_BYTES + 1))
    if known.uuid != uuid:
        raise ValueError(f"it is of the image {known.uuid}")
    return known


def record(state: Path, found: WorkingSet) -> bool:
    """Record the working set of an image; return whether that was done.

    A save does not replace what ``warm --learn`` has recorded. Raises OSError, ValueError where it
    is too large, NotPermitted, ConfigMissing.
    """
    if found.by == "save":
        before = read(state, uuids.UUID(found.uuid))
        if before is not None and before.by == "learn":
            return False
    directory = locks.state_directory(state, _PART)
    locks.make_room(directory, _MOST)
    locks.replace(path(state, found.uuid), found.encoded())
    return True


def forget(state: Path, uuid: uuids.UUID) -> None:
    """Remove the working set of an image that is gone, as far as that can be done."""
    with contextlib.suppress(OSError):
        path(state, str(uuid)).unlink()


def learned(state: Path, users: Iterable[User], opened: Image, by: By) -> WorkingSet:
    """Return what ``users`` have touched of the image that they live on. Blocks.

    Of a guest that was saved since, QEMU has read all pages: what it has changed counts then, and
    what was recorded before. Raises OSError, InvalidImage or one of its kin.
    """
    users = list(users)
    blocks = mapped_ram.read(opened.fd, opened.block.stream_offset, opened.size).blocks
    found = WorkingSet(
        uuid=str(opened.block.uuid),
        by=by,
        recorded=time.time(),
        page_bytes=pagemap.PAGE,
        blocks=working_set.collected(
            blocks, _touched(users, mappings.File.of(opened.fd)), pagemap.PAGE
        ),
    )
    if any(user.is_read for user in users):
        return found.joined(read(state, opened.block.uuid))
    return found


def _touched(users: Iterable[User], file: mappings.File) -> Iterator[tuple[int, bitarray]]:
    for user in users:
        yield from pagemap.of_file(user.pid, file, changed=user.is_read)


async def at_save(state: Path, user: User | None) -> WorkingSet | None:
    """Record the working set of the image that a guest lives on, before a save reads its RAM.

    Return it; None where there is none. A save does not fail for it: what went wrong is logged.
    """
    if user is None:
        return None
    try:
        return await blocking.within(_AT_SAVE, _at_save, state, user)
    except errors.ImageNotFound:  # it has lost its name, and where it was mapped is not known
        return None
    except (OSError, ValueError, errors.MapsaveError) as error:
        _log.warning("no working set is recorded of %s: %s", user.image, error)
        return None


def _at_save(state: Path, user: User) -> WorkingSet | None:
    with image.opened(user.image) as opened:
        if not in_use.of_image([user], opened):  # another image has its name by now
            return None
        found = learned(state, [user], opened, "save")
    record(state, found)
    return found


def pass_on(state: Path, found: WorkingSet | None, uuid: uuids.UUID) -> None:
    """Record the same for the image that the guest was saved to. Never raises."""
    if found is None:
        return
    try:
        record(state, dataclasses.replace(found, uuid=str(uuid)))
    except (OSError, ValueError, errors.MapsaveError) as error:
        _log.warning("no working set is recorded of the new image: %s", error)


def note_reading(state: Path, user: User | None) -> None:
    """Note that QEMU is about to read all RAM of a guest that lives on an image. Never raises."""
    if user is None or user.is_read:
        return
    try:
        in_use.note(state, msgspec.structs.replace(user, is_read=True))
    except (OSError, errors.MapsaveError) as error:
        _log.warning("the next working set of %s will be too large: %s", user.image, error)
