"""An image from creation to commit, and from opening to validation.

``creating`` makes ``NAME.partial`` and yields a ``Partial``; only ``Partial.commit`` turns it into
``NAME``, after data fsync → validation → superblock "saved" → fsync → rename → directory fsync.
Every other way out of the context removes it, unless it was told to ``keep``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import stat
import time
import uuid as uuids
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.image import bitmaps, description, descriptors, mapped_ram, superblock, syscalls
from manager.image.superblock import State, Superblock

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTIAL_SUFFIX = ".partial"
_NAME_MAX = 255
_BLANK_AT_MOST = 60.0  # seconds; ``creating`` takes microseconds from open to superblock


def partial_name(name: str) -> str:
    """Return the name under which the image ``name`` is written until it is committed.

    Where the suffix would make it longer than a file name may be, the end is a digest instead.
    """
    if len(os.fsencode(name + PARTIAL_SUFFIX)) <= _NAME_MAX:
        return name + PARTIAL_SUFFIX
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    room = _NAME_MAX - len(digest) - len(PARTIAL_SUFFIX) - 1
    head = os.fsencode(name)[:room].decode(errors="ignore")
    return f"{head}.{digest}{PARTIAL_SUFFIX}"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What validation found: the stream, and how many pages of each RAM block are in the file."""

    stream: mapped_ram.Stream
    used_pages: tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of RAM that are in the file: used pages times page size."""
        return sum(
            used * block.page_size
            for used, block in zip(self.used_pages, self.stream.blocks, strict=True)
        )


def validate_stream(fd: int, offset: int, size: int) -> Contents:
    """Read the stream at ``offset`` whole: structure, bitmaps, JSON description.

    Raises InvalidImage or one of its kin.
    """
    stream = mapped_ram.read(fd, offset, size)
    description.check(fd, stream)
    used = tuple(bitmaps.used_pages(fd, block) for block in stream.blocks)
    return Contents(stream, used)


@dataclasses.dataclass
class Partial:
    """An image being written: ``fd`` is read-write and stays ours; QEMU gets the pair."""

    directory: int
    name: str
    fd: int
    block: Superblock
    _keep: bool = False

    @property
    def partial(self) -> str:
        """The file's present name within its directory."""
        return partial_name(self.name)

    def keep(self) -> None:
        """Leave the partial file where it is at the end: somebody else will deal with it."""
        self._keep = True

    def remove(self) -> None:
        """Delete the partial file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial, dir_fd=self.directory)

    def metadata(self) -> dict[str, Any]:
        """Return what was known before the save. Raises InvalidImage."""
        return superblock.read_metadata(self.fd, self.block)

    def sync(self) -> None:
        """Bring QEMU's data to stable storage: it never does (``migration/main.rst``)."""
        os.fsync(self.fd)

    def validate(self) -> Contents:
        """Read back what QEMU wrote. Raises InvalidImage or one of its kin."""
        size = os.fstat(self.fd).st_size
        return validate_stream(self.fd, self.block.stream_offset, size)

    def commit(self, metadata: dict[str, Any], *, replace: bool) -> None:
        """Make it the image ``NAME``: superblock, rename, directory fsync; data is synced already.

        Raises OSError; FileExistsError where ``NAME`` exists and ``replace`` is false.
        """
        size = os.fstat(self.fd).st_size
        saved = dataclasses.replace(self.block, state=State.SAVED, file_length=size)
        self.block = superblock.write(self.fd, saved, metadata)
        # The other slot as well: were this one to rot, the older would call the image partial.
        self.block = superblock.write(self.fd, self.block)
        syscalls.rename(self.directory, self.partial, self.name, replace=replace)
        self._keep = True
        os.fsync(self.directory)


@contextlib.contextmanager
def creating(
    directory: int, name: str, metadata: dict[str, Any], *, stream_offset: int
) -> Iterator[Partial]:
    """Create ``NAME.partial``, mode 0600, with a partial superblock; remove it unless committed.

    Nothing beyond the metadata is written, so the file stays shorter than M: preallocation with
    KEEP_SIZE survives QEMU's ftruncate(M) only then.

    Raises Busy where the partial file exists: its owner lives, or ``mapsave recover`` is due.
    """
    superblock.check_stream_offset(stream_offset)
    partial = partial_name(name)
    try:
        fd = syscalls.open_beneath(directory, partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise errors.Busy(
            f"{partial!r} exists: another save writes this image, or one was interrupted",
            hint="run 'mapsave recover' if no save is running",
        ) from None
    try:
        first = Superblock(State.PARTIAL, 0, stream_offset, uuids.uuid4())
        image = Partial(directory, name, fd, first)
        try:
            # Held as long as we live: what `recover` can lock has no owner any more. It may be
            # trying just now, so wait: it keeps the lock of a file without superblock no longer.
            fcntl.flock(fd, fcntl.LOCK_EX)
            image.block = superblock.write(fd, first, metadata, durable=False)
            yield image
        finally:
            if not image._keep:
                image.remove()
    finally:
        os.close(fd)


@contextlib.contextmanager
def adopting(directory: int, name: str) -> Iterator[Partial]:
    """Open the ``NAME.partial`` that an interrupted save left, to commit or remove it.

    Raises OSError where it is gone, InvalidImage where its superblock is damaged, Busy where its
    owner lives.
    """
    with descriptors.opened(directory, partial_name(name), os.O_RDWR) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Busy(f"{partial_name(name)!r} is being written") from None
        yield Partial(directory, name, fd, superblock.read(fd))


def is_abandoned(directory: int, partial: str) -> bool:
    """Tell whether the file ``partial`` is a partial image that nobody has locked.

    One without a superblock counts after a minute: its manager, or the whole host, ended before
    the superblock was on disk.
    """
    try:
        with descriptors.opened(directory, partial, os.O_RDONLY | os.O_NONBLOCK) as fd:
            stats = os.fstat(fd)
            if not stat.S_ISREG(stats.st_mode):
                return False
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if superblock.is_blank(fd):
                return time.time() - stats.st_mtime > _BLANK_AT_MOST
            return superblock.read(fd).state is State.PARTIAL
    except (OSError, errors.InvalidImage):
        return False


@dataclasses.dataclass
class Image:
    """A committed image open for reading."""

    path: str
    fd: int
    block: Superblock
    metadata: dict[str, Any]

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return os.fstat(self.fd).st_size

    @property
    def allocated(self) -> int:
        """The bytes of disk that the file occupies."""
        return os.fstat(self.fd).st_blocks * 512

    def validate(self) -> Contents:
        """Read the structure whole. Raises PartialImage, TruncatedImage or InvalidImage."""
        if self.block.state is State.PARTIAL:
            raise errors.PartialImage(
                f"{self.path!r} was never completed",
                hint="'mapsave recover' finishes or removes what an interrupted save left",
            )
        return validate_stream(self.fd, self.block.stream_offset, self.size)

    def mark(self, state: State) -> None:
        """Record ``state`` in the superblock, durably.

        Raises OSError: EROFS, EACCES where the image cannot be written.
        """
        with descriptors.reopened(self.fd, os.O_WRONLY) as writable:
            marked = dataclasses.replace(self.block, state=state)
            self.block = superblock.write(writable, marked)


# What the rest of the manager reads from the metadata, and what it must be where it is there.
_METADATA_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("guest", "qemu", "memory", "strategy", "host"), dict),
    **dict.fromkeys(("command", "label"), (dict, type(None))),
    **dict.fromkeys(("run_state", "machine", "started", "ended"), str),
}


def check_metadata(metadata: dict[str, Any]) -> None:
    """Raise InvalidImage where a part of the metadata is of another type than it must be."""
    for key, wanted in _METADATA_TYPES.items():
        if key in metadata and not isinstance(metadata[key], wanted):
            raise errors.InvalidImage(f"metadata: {key!r} is not what it must be")
    argv = (metadata.get("command") or {}).get("argv", [])
    if not isinstance(argv, list) or not all(isinstance(part, str) for part in argv):
        raise errors.InvalidImage("metadata: 'command' holds no list of arguments")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image]:
    """Open the image at ``path`` for reading; its superblock and metadata are checked.

    A partial image opens too, so that it can be looked at; ``Image.validate`` refuses it.

    Raises ImageNotFound, NotPermitted, NotAnImage, InvalidImage or one of their kin.
    """
    name = os.fspath(path)
    with _open_for_reading(name) as fd:
        try:
            block = superblock.read(fd)
            metadata = superblock.read_metadata(fd, block) if block.metadata_length else {}
            check_metadata(metadata)
        except errors.InvalidImage as error:
            error.message = f"{name!r}: {error.message}"
            raise
        yield Image(name, fd, block, metadata)


@contextlib.contextmanager
def _open_for_reading(name: str) -> Iterator[int]:
    try:
        # O_NONBLOCK: a FIFO of that name must not hold us; it is refused below.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise errors.NotPermitted(f"cannot open {name!r}: {error.strerror}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.ImageNotFound(f"cannot open {name!r}: {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise errors.NotAnImage(f"{name!r} is not a regular file")
        yield fd
    finally:
        os.close(fd)
