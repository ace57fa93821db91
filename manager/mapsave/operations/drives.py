"""Files behind the guest's disks: those that QEMU has open must still be where it opened them.

At the end of a save QEMU releases the disks, and opens files of ``auto-read-only=on``, which is
what libvirt uses, again by their names (10.0, ``block/file-posix.c``). One that is gone fails the
save in its last moment; another one of that name becomes the guest's disk without a word. And
where QEMU does not open them again, a file that has no name ends with QEMU.
"""

import dataclasses
import os

from mapsave import errors
from mapsave.monitor import process
from mapsave.monitor.session import Session

# Drivers that open a file by its name (qapi/block-core.json).
_BY_NAME = frozenset(("file", "host_device"))
_DESCRIPTOR_SETS = "/dev/fdset/"


@dataclasses.dataclass(frozen=True)
class Drive:
    """A file that QEMU writes to as a disk, by the block node's name and QEMU's own path."""

    node: str
    path: str


async def query(session: Session) -> tuple[Drive, ...]:
    """Ask QEMU which files it has open as disks that can be written."""
    # Without `flat` each node is described with all nodes below it.
    nodes = await session.execute("query-named-block-nodes", {"flat": True})
    return tuple(
        Drive(str(node["node-name"]), str(node["file"]))
        for node in nodes
        if node["drv"] in _BY_NAME and not node["ro"]
        if not str(node["file"]).startswith(_DESCRIPTOR_SETS)
    )


def check(pid: int | None, drives: tuple[Drive, ...]) -> str:
    """Return the check's line. Raises NotMigratable where QEMU could not open a file again."""
    if not drives:
        return "none in files"
    try:
        opened = _opened(pid)
    except OSError as error:
        return f"not checked: QEMU's open files cannot be seen ({error.strerror})"
    for drive in drives:
        try:
            found = os.stat(process.path_seen_by(pid, drive.path))
        except FileNotFoundError:
            what = "no longer exists"
        except OSError:
            continue  # out of our sight, which need not be out of QEMU's
        else:
            if (found.st_dev, found.st_ino) in opened:
                continue
            what = "is another file than the one that QEMU has open"
        raise errors.NotMigratable(
            f"the disk {drive.node!r} of the guest: {drive.path!r} {what}; QEMU opens it again at "
            "the end of the save, and a restore needs it",
            hint="move the file to that path again; its contents are in /proc/PID/fd of QEMU",
            path=drive.path,
        )
    return ", ".join(drive.path for drive in drives)


def _opened(pid: int | None) -> set[tuple[int, int]]:
    """Return device and inode of the files that the process has open. Raises OSError."""
    directory = f"/proc/{pid}/fd"
    found = set()
    for name in os.listdir(directory):
        try:
            stats = os.stat(f"{directory}/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
        found.add((stats.st_dev, stats.st_ino))
    return found
