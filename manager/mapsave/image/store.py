"""A directory of images: opened once, so that everything happens beneath that very directory."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import stat
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.image import descriptors, image, partial_names
from mapsave.image.metadata import Metadata
from mapsave.image.superblock import Superblock

if TYPE_CHECKING:
    import uuid as uuids


def check_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be an image's: one component, at most 255 bytes.

    Spaces, quotes and newlines are allowed, as in any file name.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise errors.UsageError(f"{name!r} cannot be the name of an image")
    if len(os.fsencode(name)) > partial_names.NAME_MAX:
        raise errors.UsageError(
            f"the image's name has {len(os.fsencode(name))} bytes; a file name may have at most "
            f"{partial_names.NAME_MAX}"
        )
    if partial_names.is_partial_name(name):
        raise errors.UsageError(
            f"{name!r}: names ending in {partial_names.PARTIAL_SUFFIX!r} are reserved for "
            "unfinished images"
        )


@dataclasses.dataclass(frozen=True)
class Directory:
    """An image directory held open. ``path`` is its real path, for people and policies.

    ``given`` is the path by which it was opened, and will be found again.
    """

    path: str
    fd: int
    given: str

    def exists(self, name: str) -> bool:
        """Return whether something of that name is there, a dangling symbolic link included."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def free_bytes(self, *, with_reserved: bool = False) -> int:
        """Bytes free on this file system, with those that only root may use if asked for."""
        stats = os.fstatvfs(self.fd)
        return (stats.f_bfree if with_reserved else stats.f_bavail) * stats.f_frsize

    def direct_io_refusal(self) -> str | None:
        """Return why a save there has to do without direct writes; None if it need not.

        Raises BadDirectory, NotPermitted.
        """
        work, need = f"create a file in {self.path!r}", os.W_OK | os.X_OK
        with errors.explained(work, self.path, need, otherwise=errors.BadDirectory):
            return descriptors.probe_direct_io(self.fd)


@contextlib.contextmanager
def directory(path: str | os.PathLike[str], *, create: bool = False) -> Iterator[Directory]:
    """Open the image directory at ``path``, which the operator trusts: links on the way are his.

    With ``create`` a missing directory is made, mode 0700 (images hold guests' memory). Raises
    BadDirectory, NotPermitted.
    """
    name = os.fspath(path)
    try:
        if create:
            os.makedirs(name, mode=0o700, exist_ok=True)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise errors.denied(
            f"cannot open the image directory {name!r}: {error.strerror}", name
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.BadDirectory(
            f"cannot open the image directory {name!r}: {reason}",
            hint="create it, or choose another with 'images:' or --image",
        ) from None
    with descriptors.closing(fd):
        yield Directory(os.path.realpath(f"/proc/self/fd/{fd}"), fd, os.path.abspath(name))


class EntryState(enum.StrEnum):
    PARTIAL = "partial"
    SAVED = "saved"
    RESTORED = "restored"
    INVALID = "invalid"
    UNREADABLE = "unreadable"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One file of an image directory. ``error`` says why it cannot be read as an image.

    ``format`` is ``native`` or ``libvirt``, None where there is an error.
    """

    name: str
    path: str
    file_bytes: int
    allocated_bytes: int
    modified: float
    block: Superblock | None = None
    metadata: Metadata = dataclasses.field(default_factory=lambda: Metadata())
    error: errors.MapsaveError | None = None
    format: str | None = None
    inode: int = 0

    @property
    def guest(self) -> str | None:
        return self.metadata.get("guest", {}).get("name")

    @property
    def state(self) -> EntryState:
        """The image's state; ``invalid`` where it is not a good image.

        ``unreadable`` says nothing about the image: it could not be looked at.
        """
        if partial_names.is_partial_name(self.name):
            return EntryState.PARTIAL
        if isinstance(self.error, errors.NotPermitted | errors.UnreadableImage):
            return EntryState.UNREADABLE
        if self.block is None or self.error is not None:
            return EntryState.INVALID
        return EntryState(self.block.state.word)


def entries(held: Directory, restored: Container[uuids.UUID] = frozenset()) -> list[Entry]:
    """Return the images of a directory, partial ones included, newest first.

    Files that are no images at all are left out; damaged images are listed with their error, and so
    is a regular file that may not be read, which could be one. ``restored``: the uuids of those
    that were restored though they may not say so themselves.
    """
    return sorted(each(held, restored), key=lambda entry: -entry.modified)


def each(held: Directory, restored: Container[uuids.UUID] = frozenset()) -> Iterator[Entry]:
    """Yield the entries one by one in any order, for those who do not need all of all of them."""
    for name in os.listdir(held.fd):
        if (found := entry(held, name, restored)) is not None:
            yield found


def entry(
    held: Directory, name: str, restored: Container[uuids.UUID] = frozenset()
) -> Entry | None:
    """Return the image of that name, damaged or not; None where there is none, as ``entries``."""
    path = os.path.join(held.path, name)
    try:
        with image.opened(path) as opened:
            return dataclasses.replace(
                _entry(path, os.fstat(opened.fd)),
                block=opened.block_as_used(restored),
                metadata=opened.metadata,
                format=opened.format,
            )
    except (errors.NotAnImage, errors.ImageNotFound):
        return None
    except (errors.InvalidImage, errors.NotPermitted, OSError) as error:
        try:
            stats = os.stat(path)
        except OSError:  # a partial image that was removed while we looked
            return None
        if not stat.S_ISREG(stats.st_mode):
            return None
        if isinstance(error, OSError):
            error = descriptors.unreadable(path, error)
        return dataclasses.replace(_entry(path, stats), error=error)


def _entry(path: str, stats: os.stat_result) -> Entry:
    """Return what is known of a file without opening it."""
    allocated = stats.st_blocks * 512
    return Entry(
        os.path.basename(path),
        path,
        stats.st_size,
        allocated,
        stats.st_mtime,
        inode=stats.st_ino,
    )
