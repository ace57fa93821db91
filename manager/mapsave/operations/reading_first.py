"""Read an image whole before its restore, where its storage may fail: a QEMU that meets EIO dies.

QEMU 10.0 and 11.1 die where a page cannot be read, and hang where a bitmap cannot. So where storage
is behind a network or another process, and on a device that has failed before, all that QEMU will
read is read once, before a destination is started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mapsave import blocking, errors
from mapsave.image import descriptors, piece_reader, syscalls
from mapsave.image.image import Image
from mapsave.migration.progress import Phases
from mapsave.operations import digesting, locks, verified_notes

_PART = "failed-devices"
_REMEMBERED = 30 * 86400.0  # seconds
# File systems whose storage is elsewhere (linux/magic.h, statfs(2)).
_ELSEWHERE = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x65735546: "FUSE",
    0x00C36400: "Ceph",
    0x01021997: "9p",
    0x5346414F: "AFS",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x0BD00BD0: "Lustre",
}


@contextlib.contextmanager
def noted(state: Path, path: str) -> Iterator[None]:
    """Note a device on which the image ``path`` cannot be read, for later restores."""
    try:
        yield
    except errors.UnreadableImage as error:
        if error.data.get("errno") == errno.EIO:
            with contextlib.suppress(OSError, errors.MapsaveError):
                _note(state, os.stat(path).st_dev).touch()
        raise


def _note(state: Path, device: int) -> Path:
    name = f"{os.major(device)}:{os.minor(device)}"
    return locks.state_directory(state, _PART) / name


def _is_needed(state: Path, opened: Image) -> bool:
    """Return whether an image's storage may fail to be read. Blocks."""
    if syscalls.file_system_type(opened.fd) in _ELSEWHERE:
        return True
    try:
        seen = os.stat(_note(state, os.fstat(opened.fd).st_dev)).st_mtime
    except (OSError, errors.MapsaveError):
        return False
    return time.time() - seen <= _REMEMBERED


@dataclasses.dataclass
class Verification:
    """Verifies an image's data before it is loaded, where that ``is_wanted``.

    ``verified`` bytes of data had the digests that they should; None where none were compared. What
    was found is noted in ``state``.
    """

    state: Path
    opened: Image
    phases: Phases
    is_wanted: bool
    verified: int | None = None

    async def prepared(self, *, force: bool, is_loaded_elsewhere: bool) -> list[str]:
        """Look at what is known of the image; return warnings.

        Where nothing is verified, and mapsave is to load it, it is read if its storage may fail.
        Raises DataDamaged unless ``force``, UnreadableImage, TruncatedImage.
        """
        if self.is_wanted:
            without = self.opened.taken_digests() is None
            return digesting.not_verified(self.opened) if without else []
        found = verified_notes.check_undamaged(self.state, self.opened, force=force)
        if not is_loaded_elsewhere:
            await _read(self.state, self.opened, self.phases)
        return found

    async def verify(self) -> None:
        """Raises as ``digesting.verify``, UnreadableImage where its storage hangs as well."""
        if not self.is_wanted:
            return
        self.phases.enter("verify")
        work = functools.partial(digesting.verify_noted, self.opened, self.state)
        with noted(self.state, self.opened.path), descriptors.reading(self.opened.path):
            self.verified = await digesting.watched(work, self.phases)
        self.phases.enter("start")


async def _read(state: Path, opened: Image, phases: Phases) -> None:
    """Read an image's data where its storage may fail. Raises UnreadableImage, TruncatedImage."""

    def work(watch: digesting.Watch) -> None:
        watch.begin(opened.allocated)
        start, end = opened.block.stream_offset, opened.size
        piece_reader.read(opened.fd, start, end, lambda *_: None, watch.note)

    with noted(state, opened.path), descriptors.reading(opened.path):
        if await blocking.within(blocking.ANSWER, _is_needed, state, opened):
            phases.enter("verify")
            await digesting.watched(work, phases)
