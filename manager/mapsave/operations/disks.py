"""The files of a guest's disks since its save: a guest that has run since has changed them.

An image whose guest was ended belongs to its disks as they were then. Where the guest was booted
in between, its memory and its disks do not fit any more, and file systems are damaged when it is
restored. QEMU writes nothing to its disks once a save is complete, nor when it exits after that
(10.0, ``block.c``: inactivated), so their change times are final at the commit.

A copy, a backup or a move to another host may change these times as well: that is a warning.
"""

import datetime
import os
import stat
from collections.abc import Iterable, Iterator

from mapsave import units
from mapsave.image.image import Image
from mapsave.image.metadata import DiskPart
from mapsave.image.superblock import State
from mapsave.monitor import process
from mapsave.operations.drives import Drive


def record(pid: int | None, drives: Iterable[Drive]) -> list[DiskPart]:
    """Return the disks of a guest that is paused for good, with their change times. Blocks.

    Only regular files can be recorded, and those that have the same path here as for QEMU: what
    is written to a block device or over a network leaves no time behind.
    """
    found: list[DiskPart] = []
    for drive in drives:
        path = os.path.join(process.working_directory(pid) or "/" if pid else "/", drive.path)
        try:
            stats = os.stat(path)
            seen = os.stat(process.path_seen_by(pid, drive.path))
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(stats.st_mode) and os.path.samestat(stats, seen):
            found.append({"path": path, "modified_ns": max(0, stats.st_mtime_ns)})
    return found


def changes(opened: Image) -> list[str]:
    """Return a warning for each disk that is not as it was when the image's guest ended. Blocks.

    Of a guest that was resumed after its save, one warning: its disks have changed since. None for
    an image that was restored, which is restored again only by those who say so.
    """
    if opened.block.state is not State.SAVED:
        return []
    if opened.metadata.get("then") == "resume":
        stopped = opened.metadata.get("paused_at")
        since = f" at {_time(int(stopped * 1e9))}" if stopped else ""
        return [
            f"the guest kept running after this save{since}, and its disks have changed since: a "
            "restore damages their file systems unless they are as they were then (of a snapshot)"
        ]
    return list(_changes(opened.metadata.get("disks") or ()))


def _changes(recorded: Iterable[DiskPart]) -> Iterator[str]:
    for disk in recorded:
        path, saved = disk["path"], disk["modified_ns"]
        try:
            now = os.stat(path).st_mtime_ns
        except OSError as error:
            yield (
                f"the disk {path!r} could not be compared with what it was at the save: "
                f"{error.strerror}"
            )
            continue
        if now > saved:
            yield (
                f"the disk {path!r} was changed at {_time(now)}, after the guest was saved (last "
                f"changed at {_time(saved)}): if the guest was booted since, do not restore this "
                "image, because it would damage the disk's file systems; copies and backups may "
                "change this time too"
            )
        elif now < saved:
            yield (
                f"the disk {path!r} was last changed at {_time(now)}, but at {_time(saved)} when "
                "the guest was saved: it may be an older copy, which does not fit this image"
            )


def _time(nanoseconds: int) -> str:
    """Return a time as people read it."""
    try:
        found = datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{nanoseconds} ns"
    return units.format_time(found, precisely=True)
