"""What a listing shows of each image, kept in the state directory: to read tens of thousands of
headers takes seconds, to see that none has changed a fraction of one.

A file is read again where inode, length, mtime or ctime differ, or where it was changed only just
before it was read: what follows within one tick of the clock leaves the same times. What decides
about an image (a restore, a deletion, retention) reads the image itself.
"""

import contextlib
import datetime
import os
import stat
import time
import uuid as uuids
from collections.abc import Collection, Container
from pathlib import Path

import msgspec
from msgspec import structs

import mapsave
from mapsave import errors, instant_names, units
from mapsave.errors import ErrorDict
from mapsave.image import descriptors, ownership, partial_names, store
from mapsave.image.superblock import State
from mapsave.operations import exclusive, in_use, locks, verified_notes, whereabouts
from mapsave.strict_json import Facts

_DIRECTORY = "listings"
SETTLED = 2_000_000_000  # nanoseconds; clocks of file systems tick every few milliseconds

_Mark = tuple[int, int, int, int]  # inode, length, mtime and ctime in nanoseconds


class _Read(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was read of a file when it had ``mark``; ``state`` None where it is not an image.

    ``writers`` is as ``ownership.writers`` returns it; of a link as ``ownership.of_file`` does.
    """

    mark: _Mark
    state: str | None = None
    uuid: bytes | None = None
    guest: str | None = None
    job: str | None = None
    format: str | None = None
    started: str | None = None
    writers: tuple[str, ...] = ()
    error: ErrorDict | None = None
    note: str | None = None
    is_checkpoint: bool = False


class _Kept(msgspec.Struct, array_like=True):
    """An index as it is in its file. With another version, or other users, all is read again."""

    version: str
    trusted: frozenset[int]
    files: dict[bytes, _Read]


class Listed(msgspec.Struct, frozen=True, gc=False):
    """An image of a directory as it is now. Newest first is the order of ``place``."""

    name: str
    place: tuple[int, int]
    bytes: int
    allocated: int
    owner: int | None  # None of a link
    read: _Read

    @property
    def saved(self) -> float:
        """When its save began, in seconds since the epoch.

        The last change of the file where the image does not say, or claims a later time. A restore
        changes the file as well: it marks it.
        """
        modified = -self.place[0] / 1e9
        try:
            began = datetime.datetime.fromisoformat(str(self.read.started))
        except ValueError:
            return modified
        return min(began.timestamp(), modified) if began.tzinfo else modified


class Images:
    """The images of a directory, newest first."""

    def __init__(self, path: str, around: ownership.Around, listed: list[Listed]) -> None:
        self.path = path
        self.listed = listed
        self._around = around

    def chosen(self, guest: str | None = None, *, latest: bool = False) -> list[Listed]:
        """Return the images of ``guest``, of all guests without one; with ``latest`` for each guest
        only the one that was saved last.

        Partial images do not count, nor do damaged ones: it is not known whose they are.
        """
        found = [each for each in self.listed if guest in (None, each.read.guest)]
        if not latest:
            return found
        last: dict[str, Listed] = {}
        for each in found:
            name = each.read.guest
            if name is None or each.read.state == store.EntryState.PARTIAL:
                continue
            if name not in last or each.saved > last[name].saved:
                last[name] = each
        return [each for each in found if last.get(each.read.guest or "") is each]

    def line(
        self,
        each: Listed,
        restored: Container[uuids.UUID],
        pinned: Container[uuids.UUID] = frozenset(),
        users: Collection[in_use.User] = (),
        verified: verified_notes.Known | None = None,
        budget: exclusive.Budget | None = None,
    ) -> Facts:
        """Return the line of an image; ``restored`` is as ``store.entries`` takes it.

        ``users`` are all guests that live on images, ``verified`` is what is known of their data;
        without a ``budget`` it is not looked at what the image shares with other files.
        """
        read, path = each.read, os.path.join(self.path, each.name)
        state = read.state
        uuid = uuids.UUID(bytes=read.uuid) if read.uuid else None
        if state == State.SAVED.word and uuid in restored:
            state = State.RESTORED.word
        note = verified.get(uuid, each.place[1]) if verified is not None else None
        return {
            "image": path,
            "name": each.name,
            "guest": read.guest,
            "job": read.job,
            "state": state,
            "format": read.format,
            "pinned": uuid in pinned,
            "in_use_by": [user.shown() for user in in_use.of_file(users, str(uuid), each.place[1])],
            "note": read.note,
            "verified": note.shown() if note is not None else None,
            "saved": units.timestamp(each.saved),
            "modified": units.timestamp(-each.place[0] / 1e9),
            "file_bytes": each.bytes,
            "allocated_bytes": each.allocated,
            "exclusive_bytes": budget.of(path, is_checkpoint=read.is_checkpoint)
            if budget is not None
            else None,
            "writable_by": self._writable_by(path, each),
            "error": read.error,
        }

    def _writable_by(self, path: str, each: Listed) -> list[str]:
        if each.owner is None:
            return list(each.read.writers)
        return self._around.of_file(path, each.owner, each.read.writers)


def look(
    held: store.Directory, state: Path, trusted: frozenset[int], *, with_managed: bool = False
) -> Images:
    """Return the images of a directory; read are those that the index in ``state`` does not know.

    An index that cannot be read or written costs time only. ``with_managed``: and the managed saves
    of libvirt guests, whose names are paths.
    """
    stats = os.fstat(held.fd)
    index = state / _DIRECTORY / f"{stats.st_dev:x}-{stats.st_ino:x}"
    before = _load(index, trusted)
    now = time.time_ns()
    listed: list[Listed] = []
    known: dict[bytes, _Read] = {}
    for name in os.listdir(held.fd):
        if instant_names.LINK.fullmatch(name):
            continue  # it is there while a libvirt guest is started
        try:
            found = os.stat(name, dir_fd=held.fd, follow_symlinks=False)
            is_link = stat.S_ISLNK(found.st_mode)
            found = os.stat(name, dir_fd=held.fd) if is_link else found
        except OSError:
            continue
        key = os.fsencode(name)
        mark = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        read = before.get(key)
        if read is None or read.mark != mark or is_link:
            read = _read(held, name, mark, trusted, is_link=is_link)
            if read is None:
                continue
        is_looked_at = read.state != store.EntryState.UNREADABLE  # which says nothing of the file
        if (
            is_looked_at
            and now - mark[3] > SETTLED
            and not is_link
            and not partial_names.is_partial_name(name)
        ):
            known[key] = read
        if read.state is not None:
            place = (-max(0, mark[2]), mark[0])
            allocated, owner = found.st_blocks * 512, None if is_link else found.st_uid
            listed.append(Listed(name, place, mark[1], allocated, owner, read))
    if known != before:
        _store(index, trusted, known)
    if with_managed:
        listed += [_managed(state, note, trusted) for note in whereabouts.managed(state)]
    listed.sort(key=lambda each: each.place)
    return Images(held.path, ownership.Around(held.path, held.fd, trusted), listed)


def _read(
    held: store.Directory, name: str, mark: _Mark, trusted: frozenset[int], *, is_link: bool
) -> _Read | None:
    """Read a file; None where that may be otherwise the next time, and it is not listed."""
    path = os.path.join(held.path, name)
    try:
        entry = store.entry(held, name)
        fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=held.fd)
    except OSError:
        return None
    with descriptors.closing(fd):
        if entry is None:
            readable = os.access(name, os.R_OK, dir_fd=held.fd, effective_ids=True)
            return _Read(mark) if readable else None
        if is_link:
            writers = ownership.of_file(path, fd, trusted)
        else:
            writers = ownership.writers(fd, trusted)
    block, known = entry.block, entry.metadata
    return _Read(
        mark=mark,
        state=entry.state.value,
        uuid=block.uuid.bytes if block is not None else None,
        guest=entry.guest,
        job=known.get("job"),
        format=entry.format,
        started=known.get("started"),
        writers=tuple(writers),
        error=entry.error.as_dict() if entry.error else None,
        note=known.get("note"),
        is_checkpoint=bool(known.get("checkpoint")),
    )


def _managed(state: Path, note: whereabouts.Note, trusted: frozenset[int]) -> Listed:
    """Return the line of a managed save, be it gone: what became of it is its state."""
    taken = round(note.time * 1e9)
    gone = _Read(mark=(0, 0, taken, taken), guest=note.guest, format="libvirt")
    try:
        fate: str = whereabouts.fate(state, note)
        if fate == whereabouts.Fate.SAVED:
            directory, name = os.path.split(note.image)
            with store.directory(directory) as held:
                found = os.stat(name, dir_fd=held.fd)
                mark = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                whom = trusted | {os.fstat(held.fd).st_uid}  # whom libvirt trusts with it
                read = _read(held, name, mark, whom, is_link=True)
            if read is not None and read.state is not None:
                place = (-max(0, mark[2]), mark[0])
                size = found.st_blocks * 512
                return Listed(note.image, place, mark[1], size, None, read)
            fate = whereabouts.Fate.GONE  # just now
        read = structs.replace(gone, state=fate)
    except (OSError, errors.MapsaveError) as error:
        failed = descriptors.unreadable(note.image, error) if isinstance(error, OSError) else error
        read = structs.replace(
            gone, state=store.EntryState.UNREADABLE.value, error=failed.as_dict()
        )
    return Listed(note.image, (-taken, 0), 0, 0, None, read)


def _load(index: Path, trusted: frozenset[int]) -> dict[bytes, _Read]:
    """Return the files of an index; none where it is not one that we wrote."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        with open(os.open(index, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return {}
            kept = msgspec.msgpack.decode(file.read(), type=_Kept)
        if (kept.version, kept.trusted) == (mapsave.__version__, trusted):
            return kept.files
    return {}


def _store(index: Path, trusted: frozenset[int], files: dict[bytes, _Read]) -> None:
    try:
        raw = _encoded(_Kept(mapsave.__version__, trusted, files))
    except UnicodeEncodeError:  # names that are not UTF-8: these are read each time
        raw = _encoded(_Kept(mapsave.__version__, trusted, dict(filter(_is_text, files.items()))))
    with contextlib.suppress(OSError, errors.MapsaveError):
        locks.state_directory(index.parents[1], index.parent.name)
        new = index.with_suffix(f".{os.urandom(6).hex()}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(raw)
            os.replace(new, index)
        except BaseException:
            os.unlink(new)
            raise


_encoded = msgspec.msgpack.encode


def _is_text(file: tuple[bytes, _Read]) -> bool:
    try:
        _encoded(file)
    except UnicodeEncodeError:
        return False
    return True
