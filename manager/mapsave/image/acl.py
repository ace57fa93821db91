"""POSIX access control lists of files: who may read or write beside owner, group and others.

The format is that of the extended attribute (``linux/posix_acl_xattr.h``, acl(5)).
"""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_NAME = "system.posix_acl_access"
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_VERSION = 2
_UNDEFINED = 0xFFFFFFFF  # the id of an entry that is of no user or group of its own
USER_OWNER, USER, GROUP_OWNER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
READ, WRITE, EXECUTE = 4, 2, 1
_MASKED = (USER, GROUP_OWNER, GROUP)
# Another user's file, a file system without ACLs, or no room for one.
_REFUSALS = frozenset(
    (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
)


class Entry(NamedTuple):
    """One entry: what it is for, what that may do, and its uid or gid."""

    tag: int
    permissions: int
    id: int


def read(fd: int) -> list[Entry] | None:
    """Return the entries of a file's ACL; None without one, or where it cannot be read.

    The mode says as much or more then: its group bits are the ACL's mask.
    """
    try:
        raw = os.getxattr(f"/proc/self/fd/{fd}", _NAME)  # O_PATH descriptors take no fgetxattr
    except OSError:
        return None
    return parse(raw)


def parse(raw: bytes) -> list[Entry] | None:
    """Return the entries that the attribute holds; None where it is malformed."""
    if len(raw) < _HEADER.size or (len(raw) - _HEADER.size) % _ENTRY.size:
        return None
    return [Entry(*each) for each in _ENTRY.iter_unpack(raw[_HEADER.size :])]


def packed(entries: Sequence[Entry]) -> bytes:
    """Return what ``parse`` reads."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def write(fd: int, raw: bytes) -> None:
    """Give a file an ACL as the attribute holds it; one that says as much as a mode becomes one.

    Raises OSError: EPERM where the file is another user's, EOPNOTSUPP.
    """
    os.setxattr(fd, _NAME, raw)


def may_read(fd: int, uid: int) -> bool:
    """Return whether a user may open the file for reading; its path and groups do not count."""
    stats = os.fstat(fd)
    if uid in (0, stats.st_uid):
        return uid == 0 or bool(stats.st_mode & stat.S_IRUSR)
    return bool(stats.st_mode & stat.S_IROTH)


def may_search(directory: str, uid: int) -> bool:
    """Return whether a user may reach what is in a directory; for root others say that.

    Raises OSError where the directory cannot be looked at.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        stats, entries = os.fstat(fd), read(fd)
    finally:
        os.close(fd)
    if uid == 0 or uid == stats.st_uid:
        return uid == 0 or bool(stats.st_mode & stat.S_IXUSR)
    entries = entries or _of_mode(stats.st_mode)
    groups = _groups(uid)
    mask = next((entry.permissions for entry in entries if entry.tag == MASK), EXECUTE)
    for entry in entries:
        if (entry.tag, entry.id) == (USER, uid):
            return bool(entry.permissions & mask & EXECUTE)
    own = [
        entry.permissions & mask & EXECUTE
        for entry in entries
        if (entry.tag == GROUP and entry.id in groups)
        or (entry.tag == GROUP_OWNER and stats.st_gid in groups)
    ]
    return any(own) if own else bool(stats.st_mode & stat.S_IXOTH)


def _groups(uid: int) -> frozenset[int]:
    """Return the groups of a user; none where the user is not known."""
    import pwd  # rarely needed

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))


@contextlib.contextmanager
def readable(
    fd: int, uid: int, on_begin: Callable[[bytes], None], on_left: Callable[[OSError], None]
) -> Iterator[None]:
    """Let the user ``uid`` open the file for reading as long as the context lasts.

    ``on_begin`` gets what ``write`` takes to undo it, before anything is changed; ``on_left`` why
    it could not be undone. Of one file there must be one such context at a time. Blocks. Raises
    OSError as ``write`` does, before the context.
    """
    before = read(fd) or _of_mode(os.fstat(fd).st_mode)
    # An entry that a killed process has left goes when that is recovered, and not before we end.
    if may_read(fd, uid) or _reads(before, uid):
        yield
        return
    undo = packed(before)
    on_begin(undo)
    write(fd, packed(_with_reader(before, uid)))
    try:
        yield
    finally:
        try:
            write(fd, undo)
        except OSError as error:
            on_left(error)


def _reads(entries: Sequence[Entry], uid: int) -> bool:
    """Return whether an entry of the user's own lets it read the file."""
    mask = next((entry.permissions for entry in entries if entry.tag == MASK), READ)
    own = [each.permissions for each in entries if (each.tag, each.id) == (USER, uid)]
    return bool(own and own[0] & mask & READ)


def _of_mode(mode: int) -> list[Entry]:
    tags = ((USER_OWNER, 6), (GROUP_OWNER, 3), (OTHER, 0))
    return [Entry(tag, mode >> shift & 7, _UNDEFINED) for tag, shift in tags]


def _with_reader(entries: Sequence[Entry], uid: int) -> list[Entry]:
    """Return the entries with one for the user; the mask lets nothing through that it held back.

    The kernel wants them in the order of their tags and ids.
    """
    mask = next((entry.permissions for entry in entries if entry.tag == MASK), None)
    if mask is None:
        mask = next(entry.permissions for entry in entries if entry.tag == GROUP_OWNER)
    others = [
        each._replace(permissions=each.permissions & mask) if each.tag in _MASKED else each
        for each in entries
        if each.tag != MASK and (each.tag, each.id) != (USER, uid)
    ]
    return sorted([*others, Entry(USER, READ, uid), Entry(MASK, mask | READ, _UNDEFINED)])


def refuses(error: OSError) -> bool:
    """Return whether an ACL cannot be set at all, which is no fault of the storage."""
    return error.errno in _REFUSALS
