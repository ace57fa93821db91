"""Who can write a file, or exchange it: its owner, its mode, and every directory on the way to it.

An image decides what is loaded, and its domain XML what is run. So no one but trusted users may be
able to write it, and none of the directories on its path, from the root down, the targets of
symbolic links included. The path is walked by descriptors (O_PATH, open(2)), each component looked
at by fstat, and must end at the file that is open already: what was looked at is what is read.

In a directory with the sticky bit (/tmp) only a file's owner, the directory's owner and root can
rename or delete it (unlink(2)), so such a directory is safe where they are trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Generator, Iterable

from mapsave.image import acl

_MOST_LINKS = 40  # as the kernel follows (path_resolution(7))
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def of_file(path: str, fd: int, trusted: Collection[int]) -> list[str]:
    """Return how others than the ``trusted`` users could write the file open as ``fd``.

    ``path`` is where it was opened. Each item names a file or directory and who can write it; an
    empty list means that no one can. Never raises for what it finds: a path that cannot be
    walked, or leads to another file by now, is an item as well.
    """

    def at_the_end(last: _Step) -> list[str]:
        if os.path.samestat(last.stats, os.fstat(fd)):
            return []
        return [f"{path!r} leads to a different file than the one that was opened"]

    problems = [f"{path!r} {who}" for who in _writers(fd, os.fstat(fd), trusted)]
    return _followed(path, trusted, problems, at_the_end)


class Around:
    """How others could exchange the files of a directory: asked once for all of them.

    Open: ``fd`` is the directory's.
    """

    def __init__(self, path: str, fd: int, trusted: Collection[int]) -> None:
        stats = os.fstat(fd)

        def at_the_end(last: _Step) -> list[str]:
            if os.path.samestat(last.stats, stats):
                return []
            return [f"{path!r} leads to a different directory than the one that was opened"]

        self._trusted = trusted
        self._way = _followed(path, trusted, [], at_the_end)
        self._inside = [f"{path!r} {who}" for who in _writers(fd, stats, trusted)]
        self._is_sticky = bool(stats.st_mode & stat.S_ISVTX) and stats.st_uid in trusted

    def of_file(self, path: str, owner: int, writers: Iterable[str]) -> list[str]:
        """Return what ``of_file`` does of a file in it that is no link, of the user ``owner``.

        ``writers`` are what ``writers`` returns of it.
        """
        problems = [f"{path!r} {who}" for who in writers] + self._way
        if not (self._is_sticky and owner in self._trusted):
            problems = problems + self._inside
        return list(dict.fromkeys(problems))


def writers(fd: int, trusted: Collection[int]) -> list[str]:
    """Return who else than the ``trusted`` can write the file open as ``fd``, whatever its path."""
    return _writers(fd, os.fstat(fd), trusted)


def of_directory(path: str, trusted: Collection[int]) -> list[str]:
    """Return how others than the ``trusted`` users could exchange a file made in this directory.

    The file is a trusted user's own. Items are as those of ``of_file``.
    """

    def at_the_end(last: _Step) -> list[str]:
        if last.stats.st_mode & stat.S_ISVTX and last.stats.st_uid in trusted:
            return []
        return [f"{last.path!r} {who}" for who in _writers(last.fd, last.stats, trusted)]

    return _followed(path, trusted, [], at_the_end)


def _followed(
    path: str,
    trusted: Collection[int],
    problems: list[str],
    at_the_end: Callable[[_Step], list[str]],
) -> list[str]:
    """Return ``problems`` and those of each step to ``path``, and of the last, each once."""
    try:
        with contextlib.closing(_steps(path)) as steps:
            for step in steps:
                problems += step.problems(trusted)
                last = step
            problems += at_the_end(last)
    except OSError as error:
        problems.append(f"{path!r} cannot be followed: {error.strerror}")
    return list(dict.fromkeys(problems))


class _Step:
    """One component of a path, ``fd`` open by O_PATH, in the directory ``holder``."""

    def __init__(self, path: str, fd: int, holder: _Step | None) -> None:
        self.path = path
        self.fd = fd
        self.stats = os.fstat(fd)
        self._holder = holder

    def problems(self, trusted: Collection[int]) -> list[str]:
        """Return how others could put something else in the place of this component."""
        if self._holder is None:
            return []
        found: list[str] = []
        if self.stats.st_dev != self._holder.stats.st_dev:
            server = _served_by(self.fd)
            if server is not None and server not in trusted:
                found.append(f"{self.path!r} is in a file system served by uid {server} (FUSE)")
        held = self._holder.stats
        is_safe = held.st_mode & stat.S_ISVTX and held.st_uid in trusted
        if not (is_safe and self.stats.st_uid in trusted):
            writers = _writers(self._holder.fd, held, trusted)
            found += [f"{self._holder.path!r} {who}" for who in writers]
        return found


def _steps(path: str) -> Generator[_Step]:
    """Yield each component from the root to ``path``, the targets of links too; raises OSError.

    What is yielded is open until the generator is closed.
    """
    links = 0
    pending = os.path.join(os.getcwd(), path).split("/")[::-1]
    with contextlib.ExitStack() as held:

        def opened(name: str, where: str, holder: _Step | None, beneath: _Step | None) -> _Step:
            fd = os.open(name, _LOOK, dir_fd=beneath.fd if beneath else None)
            held.callback(os.close, fd)
            return _Step(where, fd, holder)

        yield (here := opened("/", "/", None, None))
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                # It has no name that could be exchanged; its own was looked at on the way down.
                yield (here := opened("..", os.path.dirname(here.path), None, here))
                continue
            yield (step := opened(name, os.path.join(here.path, name), here, here))
            if not stat.S_ISLNK(step.stats.st_mode):
                here = step
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink("", dir_fd=step.fd)
            pending += target.split("/")[::-1]
            if target.startswith("/"):
                yield (here := opened("/", "/", None, None))


def _writers(fd: int, stats: os.stat_result, trusted: Collection[int]) -> list[str]:
    """Return who can write a file or directory, root and the ``trusted`` users left out.

    Its owner counts whatever the mode is, which an owner can change.
    """
    problems = [] if stats.st_uid in trusted else [f"belongs to uid {stats.st_uid}"]
    entries = acl.read(fd)
    if entries is None:
        by_mode = ((stat.S_IWGRP, f"gid {stats.st_gid}"), (stat.S_IWOTH, "everyone"))
        return problems + [
            f"can be written by {who}" for bit, who in by_mode if stats.st_mode & bit
        ]
    mask = next((permissions for tag, permissions, _ in entries if tag == acl.MASK), acl.WRITE)
    for tag, permissions, number in entries:
        if not permissions & acl.WRITE:
            continue
        if tag == acl.OTHER:
            problems.append("can be written by everyone")
        elif not mask & acl.WRITE:
            continue
        elif tag == acl.GROUP_OWNER:
            problems.append(f"can be written by gid {stats.st_gid}")
        elif tag == acl.GROUP:
            problems.append(f"can be written by gid {number} (ACL)")
        elif tag == acl.USER and number not in trusted:
            problems.append(f"can be written by uid {number} (ACL)")
    return problems


def _served_by(fd: int) -> int | None:
    """Return the user whose process serves the file system of ``fd``; None where the kernel does.

    Such a user decides what its files hold and whose they seem to be (mount option ``user_id`` of
    FUSE, mount.fuse3(8)).
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open(f"/proc/self/fdinfo/{fd}") as info:
            mount = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", errors="replace") as mounts:
            line = next(line for line in mounts if line.split(" ", 1)[0] == mount)
        options = line.split()[-1].split(",")
        return int(next(each for each in options if each.startswith("user_id="))[8:])
    return None
