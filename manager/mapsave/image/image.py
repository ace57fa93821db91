"""An image from creation to commit, and from opening to validation.

``creating`` makes ``NAME.partial`` and yields a ``Partial``; only ``Partial.commit`` turns it
into ``NAME``, after data fsync → validation → superblock "saved" → fsync → rename → directory
fsync. In an image in libvirt format the magic "complete" of libvirt's header follows the
superblock. Every other way out of the context removes it, unless it was told to ``keep``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Literal

from mapsave import errors, file_lock
from mapsave.image import (
    data_digests,
    descriptors,
    digests,
    formats,
    libvirt_format,
    libvirt_header,
    partial_names,
    piece_reader,
    structure,
    superblock,
    syscalls,
    validation,
)
from mapsave.image.libvirt_header import LibvirtHeader, NewLibvirtHeader
from mapsave.image.metadata import Metadata
from mapsave.image.superblock import State, Superblock

if TYPE_CHECKING:
    import uuid as uuids


@dataclasses.dataclass
class Partial:
    """An image being written: ``fd`` is read-write and stays ours; QEMU gets the pair.

    ``is_left``: it could not be removed at the end. ``has_its_name``: the rename is done."""

    directory: int
    name: str
    fd: int
    block: Superblock
    libvirt: LibvirtHeader | None = None
    is_left: bool = False
    has_its_name: bool = False
    is_kept: bool = False

    @property
    def partial(self) -> str:
        return partial_names.partial_name(self.name)

    def keep(self) -> None:
        """Leave the partial file where it is at the end: another process will deal with it."""
        self.is_kept = True

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial, dir_fd=self.directory)

    def metadata(self) -> Metadata:
        """Return what was known before the save. Raises InvalidImage."""
        return superblock.read_metadata(self.fd, self.block)

    def sync(self) -> None:
        """Bring QEMU's data to stable storage: it never does (``migration/main.rst``)."""
        os.fsync(self.fd)

    def start_over(self, metadata: Metadata) -> None:
        """Drop what QEMU has written, which has let go of it. Else as ``note`` does."""
        os.ftruncate(self.fd, self.block.stream_offset)
        self.note(metadata)

    def note(self, metadata: Metadata) -> None:
        """Write other metadata, for a recovery. Raises OSError, ValueError if they do not fit."""
        self.block = superblock.write(self.fd, self.block, metadata, durable=False)

    def validate(self) -> validation.Contents:
        """Read back what QEMU wrote, and take the digest of it. Raises InvalidImage, OSError."""
        size = os.fstat(self.fd).st_size
        if self.libvirt is not None and libvirt_header.read(self.fd) != self.libvirt:
            raise errors.InvalidImage("libvirt's header has changed since it was written")
        return validation.validate_written(self.fd, self.block.stream_offset, size)

    def take_digests(self, note: piece_reader.Note, look: piece_reader.Put | None = None) -> bool:
        """Take the digests of its data, which is on stable storage; ``commit`` records them.

        Returns whether that was done: they may be taken, or there is no room for them. Arguments
        are, and errors are raised, as for ``data_digests.take``.
        """
        size = os.fstat(self.fd).st_size
        if dataclasses.replace(self.block, file_length=size).digests != "pending":
            return False
        taken = data_digests.take(self.fd, self.block.stream_offset, size, note, look)
        self.block = data_digests.write(self.fd, self.block, taken)
        return True

    def as_image(self, path: str, metadata: Metadata) -> Image:
        """Return it as what it is to become, to be read beside us."""
        return Image(path, self.fd, self.block, metadata, None)

    def set_aside(self, name: str) -> None:
        """Keep the partial image under another name, replacing what has it. Raises OSError."""
        syscalls.rename(self.directory, self.partial, name, replace=True)
        self.is_kept = True

    def commit(self, metadata: Metadata, *, replace: bool) -> None:
        """Make it the image ``NAME``: superblock, libvirt's magic, rename, directory fsync.

        Data is synced already. Each of the four is on stable storage before the next. Raises
        OSError; FileExistsError where ``NAME`` exists and ``replace`` is false. Where it
        ``has_its_name`` after that, it is the image, if no crash of the host undoes it.
        """
        size = os.fstat(self.fd).st_size
        saved = dataclasses.replace(self.block, state=State.SAVED, file_length=size)
        known = digests.added(self.libvirt, metadata)
        self.block = superblock.write_twice(self.fd, saved, known)
        if self.libvirt is not None:
            self.libvirt = libvirt_header.write_complete(self.fd, self.libvirt)
        self.give_name(replace=replace)

    def give_name(self, *, replace: bool) -> None:
        """Rename it, as the end of a commit, and fsync the directory. Raises as ``commit`` does."""
        try:
            self._rename(replace=replace)
            os.fsync(self.directory)
        finally:
            if self.has_its_name:
                with contextlib.suppress(OSError):
                    fcntl.flock(self.fd, fcntl.LOCK_UN)  # for those who mark it, or add digests

    def _rename(self, *, replace: bool) -> None:
        try:
            syscalls.rename(self.directory, self.partial, self.name, replace=replace)
        except OSError:
            # NFS may have done it though its answer was lost; a link may be made, and the other
            # name be left. By its name it is the image.
            if not self._is_named():
                raise
            self.is_kept = self.has_its_name = True
            self.remove()
        self.is_kept = self.has_its_name = True

    def _is_named(self) -> bool:
        with contextlib.suppress(OSError):
            stats = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
            return os.path.samestat(stats, os.fstat(self.fd))
        return False


@contextlib.contextmanager
def creating(
    directory: int,
    name: str,
    metadata: Metadata,
    *,
    stream_offset: int,
    libvirt: NewLibvirtHeader | None = None,
    digest_room: int = 0,
) -> Iterator[Partial]:
    """Create ``NAME.partial``, mode 0600, with a partial superblock; remove it unless committed.

    With ``libvirt`` it is in libvirt format; ``digest_room`` bytes are reserved for digests of its
    data. The stream begins after ``stream_offset`` where the header needs more:
    ``Partial.block.stream_offset`` says where.

    Nothing beyond the metadata is written, so the file stays shorter than M: preallocation with
    KEEP_SIZE survives QEMU's ftruncate(M) only then. Raises Busy where the partial file exists: its
    owner lives, or ``mapsave recover`` is due; ValueError where metadata, XML or cookie cannot be
    written.
    """
    first, header = formats.new(metadata, stream_offset, libvirt, digest_room)
    partial = partial_names.partial_name(name)
    try:
        fd = syscalls.open_beneath(directory, partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise partial_names.partial_exists(partial) from None
    try:
        image = Partial(directory, name, fd, first, header)
        try:
            # Held as long as we live: what `recover` can lock has no owner any more. It may be
            # trying just now, so wait: it keeps the lock of a file without superblock no longer.
            file_lock.exclusive(fd)
            image.block = superblock.write(fd, first, metadata, durable=False)
            if header is not None:
                libvirt_header.write(fd, header)
            yield image
        finally:
            if not image.is_kept:
                try:
                    image.remove()
                except OSError:
                    image.is_left = True
    finally:
        with contextlib.suppress(OSError):  # all that matters is synced, or of no use
            os.close(fd)


@contextlib.contextmanager
def adopting(directory: int, name: str) -> Iterator[Partial]:
    """Open the ``NAME.partial`` that an interrupted save left, to commit or remove it.

    Raises OSError where it is gone, InvalidImage where its superblock is damaged, Busy where its
    owner lives.
    """
    with descriptors.opened(directory, partial_names.partial_name(name), os.O_RDWR) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Busy(f"{partial_names.partial_name(name)!r} is being written") from None
        block, header = formats.slots(fd)
        if block is None:
            raise errors.InvalidImage(
                f"{partial_names.partial_name(name)!r} was not written by mapsave"
            )
        yield Partial(directory, name, fd, block, header)


@dataclasses.dataclass
class Image:
    """A committed image open for reading; ``libvirt`` is the header of one of libvirt's format.

    With ``without_metadata`` it is open though both copies of its metadata may be damaged.
    """

    path: str
    fd: int
    block: Superblock
    metadata: Metadata
    libvirt: LibvirtHeader | None = None
    without_metadata: bool = False

    @property
    def format(self) -> Literal["native", "libvirt"]:
        return "native" if self.libvirt is None else "libvirt"

    @property
    def has_superblock(self) -> bool:
        """Whether mapsave has written to the image; not so to one that libvirt saved."""
        return self.block.sequence != libvirt_format.UNWRITTEN

    def block_as_used(self, restored: Container[uuids.UUID]) -> Superblock:
        """Return the superblock; its state is restored where ``restored`` has the image's uuid."""
        if self.block.state is State.SAVED and self.block.uuid in restored:
            return dataclasses.replace(self.block, state=State.RESTORED)
        return self.block

    @property
    def undigested(self) -> str | None:
        """Why rot in header and domain XML would not be noticed; None where it would be."""
        if self.has_lost_metadata:
            return None  # which says it all
        return digests.missing(self.libvirt, written=self.block.metadata_length > 0)

    @property
    def has_lost_metadata(self) -> bool:
        """Whether both copies of the metadata are damaged."""
        return superblock.has_lost_metadata(self.fd, self.block)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with it that does not keep it from being restored."""
        damage = superblock.damage(self.fd, self.block)
        found = [text for text in (damage, self.undigested) if text is not None]
        try:
            self.taken_digests()
        except (errors.DigestsDamaged, errors.UnsupportedImage) as error:
            found.append(error.message)
        return found

    @property
    def has_structure_digest(self) -> bool:
        """Whether rot in bitmaps and device state would be noticed: older images have no digest."""
        return "structure_digest" in self.metadata

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return os.fstat(self.fd).st_size

    @property
    def allocated(self) -> int:
        """The bytes of disk that the file occupies."""
        return os.fstat(self.fd).st_blocks * 512

    def validate(self) -> validation.Contents:
        """Read the structure whole. Raises PartialImage, TruncatedImage or InvalidImage."""
        if self.block.state is State.PARTIAL:
            hint = "'mapsave recover' completes or removes what an interrupted save left"
            if self.libvirt is not None and self.libvirt.complete and not self.has_superblock:
                hint = (
                    f"libvirt has completed it: rename it without {partial_names.PARTIAL_SUFFIX!r}"
                )
            elif not self.has_superblock:
                hint = "libvirt is still saving it, or was interrupted and will not complete it"
            raise errors.PartialImage(f"{self.path!r} was never completed", hint=hint)
        with descriptors.reading(self.path):
            contents = validation.validate_stream(self.fd, self.block.stream_offset, self.size)
            structure.check(self.fd, contents.stream, self.metadata.get("structure_digest"))
            return contents.of_data(contents.used_bytes - self.metadata.get("filled_bytes", 0))

    def taken_digests(self) -> data_digests.Digests | None:
        """Return the digests of its data; None where none were taken.

        Raises DigestsDamaged, UnsupportedImage, UnreadableImage.
        """
        with descriptors.reading(self.path):
            return data_digests.read(self.fd, self.block)

    def add_digests(self, taken: data_digests.Digests) -> None:
        """Record digests of its data, durably, unless it has some. Raises as ``mark`` does, and
        ValueError where there is no room for them."""
        with self._rewriting() as writable:
            if self.block.digest_length:
                return
            found = data_digests.write(writable, self.block, taken)
            os.fdatasync(writable)
            self.block = superblock.write(writable, superblock.write(writable, found))

    def mark(self, state: State) -> None:
        """Record ``state`` in the superblock, durably.

        An image that libvirt saved gets its first superblock thereby. Raises OSError: EROFS, EACCES
        where the image cannot be written, ENOSPC where libvirt left no room, EINVAL where it has
        been damaged since it was opened.
        """
        with self._rewriting() as writable:
            if self.libvirt is not None:
                libvirt_format.check_markable(self.fd, self.libvirt, self.block)
            marked = dataclasses.replace(self.block, state=state)
            self.block = superblock.write(writable, marked)

    def mark_stale(self) -> None:
        """Mark it: its guest was resumed, so a restore refuses it. Raises OSError."""
        with self._rewriting() as writable:
            known = digests.kept(self.libvirt, self.metadata)
            stale = dataclasses.replace(self.block, state=State.RESTORED)
            try:
                self.block = superblock.write_twice(writable, stale, {**known, "continued": True})
            except ValueError:  # no room for the reason; a restore refuses it by its state
                self.block = superblock.write(writable, stale)

    @contextlib.contextmanager
    def _rewriting(self) -> Iterator[int]:
        """Yield a descriptor to write the header by, which is as it was read just now.

        Others who would write it wait. libvirt may have rewritten the XML before, and so wiped
        metadata and digests. Raises OSError.
        """
        with descriptors.reopened(self.fd, os.O_WRONLY) as writable:
            try:
                file_lock.exclusive(writable)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise  # else a file system without locks
            try:
                self.reread()
            except errors.InvalidImage as error:
                raise OSError(errno.EINVAL, error.message) from None
            yield writable

    def reread(self) -> None:
        """Read all but the stream again, as it is under the caller's lock. Raises InvalidImage."""
        self.block, self.metadata, self.libvirt = _read(
            self.fd, self.path, without_metadata=self.without_metadata
        )


def _read(
    fd: int, path: str, *, without_metadata: bool
) -> tuple[Superblock, Metadata, LibvirtHeader | None]:
    """Read as ``formats.read`` does; by its name an image is partial. Raises InvalidImage."""
    with descriptors.reading(path):
        block, metadata, header = formats.read(fd, path, without_metadata=without_metadata)
    if partial_names.is_partial_name(path) or partial_names.is_partial_name(os.path.realpath(path)):
        block = dataclasses.replace(block, state=State.PARTIAL)
    return block, metadata, header


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, without_metadata: bool = False) -> Iterator[Image]:
    """Open the image at ``path`` for reading; its superblock and metadata are checked.

    A partial image opens too, so that it can be looked at; ``Image.validate`` refuses it. With
    ``without_metadata`` one whose metadata are damaged, both copies, opens with what else says who
    it is of, if anything. Raises ImageNotFound, NotPermitted, NotAnImage, InvalidImage or one of
    their kin.
    """
    name = os.fspath(path)
    with descriptors.opened_for_reading(name) as fd:
        found = _read(fd, name, without_metadata=without_metadata)
        yield Image(name, fd, *found, without_metadata)
