"""Images that guests live on: their RAM is mapped from the file as long as their QEMU runs.

The file may lose its name, which frees its space once the last such guest is gone. It must never be
truncated or written in place: that would change, or end, the guests. So each QEMU that maps an
image is noted in the state directory, durably, before its guest runs. A note holds as long as that
process lives, by its start time and the boot of the host: a crash of the host leaves none.
"""

import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from mapsave import errors, typed
from mapsave.image import image, store
from mapsave.image.image import Image

_PART = "in-use"
_log = logging.getLogger(__name__)


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU that maps an image: its guest, process (pid and start time), and which file.

    ``uuid`` and ``inode`` are the image's: a copy of it is another file. ``data_bytes`` is how much
    of the RAM has contents, ``end`` how long the file is as far as it is mapped, ``argv`` QEMU's
    command line as it would be without the mapping. ``is_read``: QEMU has read all of the RAM
    since, to save it.
    """

    guest: str
    image: str
    uuid: str
    inode: int
    pid: int
    started: int
    data_bytes: int
    end: int
    argv: tuple[str, ...]
    is_read: bool = False

    @property
    def qemu(self) -> tuple[int, int]:
        """Pid and start time."""
        return self.pid, self.started

    def shown(self) -> dict[str, object]:
        """Return who it is, as ``list --json`` has it."""
        return {"guest": self.guest, "pid": self.pid}


def note(state: Path, user: User) -> None:
    """Note that a process maps an image, durably. Raises OSError, NotPermitted, ConfigMissing."""
    from mapsave.operations import process_files

    process_files.write(state, _PART, user.qemu, msgspec.json.encode(user))


def everyone(state: Path) -> list[User]:
    """Return all that live on images of this host. Raises Refused, NotPermitted."""
    try:
        if not os.listdir(state / _PART):
            return []
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        pass  # it is said below
    # It loads asyncio, which a listing does without.
    from mapsave.operations import process_files

    found = process_files.living(state, _PART, "images in use")
    return [user for _, raw in found if (user := _decoded(raw)) is not None]


def shown(state: Path) -> list[User]:
    """Return what ``everyone`` does, for a listing: nothing where that cannot be read."""
    try:
        return everyone(state)
    except errors.MapsaveError as error:
        _log.warning("%s", error.message)
        return []


def of_process(state: Path, qemu: tuple[int, int] | None) -> User | None:
    """Return what the process (pid, start time) maps; None for nothing. Raises NotPermitted."""
    if qemu is None:
        return None
    from mapsave.operations import process_files

    path = process_files.path(state, _PART, qemu, make=False)
    try:
        return _decoded(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise errors.denied(f"cannot read {str(path)!r}: {error.strerror}", path) from None


def of_file(users: Iterable[User], uuid: str, inode: int) -> list[User]:
    """Return those of ``users`` that map the image of that uuid and inode."""
    return [user for user in users if (user.uuid, user.inode) == (uuid, inode)]


def of_image(users: Iterable[User], opened: Image) -> list[User]:
    """Return those of ``users`` that map an image."""
    return of_file(users, str(opened.block.uuid), os.fstat(opened.fd).st_ino)


def check_whole(user: User | None) -> None:
    """Raise NotMigratable where what a guest's RAM is mapped from was cut off.

    The kernel ends a QEMU that reads there (mmap(2): SIGBUS). Without a name it was not looked at.
    """
    if user is None:
        return
    try:
        found = os.stat(user.image)
    except OSError:
        return
    if found.st_ino == user.inode and found.st_size < user.end:
        raise errors.NotMigratable(
            f"the image {user.image!r}, which the guest's RAM is mapped from, was truncated to "
            f"{found.st_size} bytes: QEMU would be killed as it reads its memory",
            hint="what the guest has not used yet is lost: shut it down",
        )


def hint_of_death(user: User | None) -> str:
    """Return where to look for the reason why QEMU has exited in a save."""
    hint = "see QEMU's log; mapsave did not stop it"
    if user is None:
        return hint
    return (
        f"{hint}. Its RAM was mapped from {user.image!r}: where that cannot be read (dmesg) or was "
        "truncated, the kernel ends QEMU"
    )


def words(users: Iterable[User]) -> str:
    """Return who uses an image: ``guest 'web01' (pid 123)``."""
    return ", ".join(f"guest {user.guest!r} (pid {user.pid})" for user in users)


def check_removal(users: list[User], path: str, *, allowed: bool) -> str | None:
    """Raise ImageInUse where an image has users and that is not ``allowed``.

    Else return what is to be said about its space; None where it has no users.
    """
    if not users:
        return None
    if not allowed:
        raise errors.ImageInUse(
            f"{path!r} is in use by {words(users)}: RAM is mapped from it",
            hint="with --in-use it loses its name, and its space is freed when the guest quits; "
            "the guest is not affected",
            users=[user.shown() for user in users],
        )
    return f"its space is freed when {words(users)} quits"


def check_replacing(
    state: Path, held: store.Directory, name: str, *, but: tuple[int, int] | None = None
) -> None:
    """Raise ImageInUse where ``name`` is an image that a guest lives on, not ``but`` one that ends.

    Raises Refused, NotPermitted.
    """
    path = os.path.join(held.path, name)
    with (
        contextlib.suppress(errors.ImageNotFound, errors.InvalidImage),
        image.opened(path) as found,
    ):
        users = [user for user in of_image(everyone(state), found) if user.qemu != but]
        check_removal(users, path, allowed=False)


def _decoded(raw: bytes) -> User | None:
    """Return what a file notes; None where it is not such a note."""
    try:
        return typed.decode(raw, User)
    except msgspec.DecodeError:
        return None
