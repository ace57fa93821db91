"""Whether a partial image still has an owner."""

import fcntl
import os
import stat
import time

from mapsave import errors
from mapsave.image import descriptors, formats, partial_names, superblock
from mapsave.image.superblock import State

_BLANK_AT_MOST = 60.0  # seconds; ``creating`` takes microseconds from open to superblock
_FOREIGN_AT_MOST = 3600.0  # seconds without a write; libvirt locks no image that it writes


def is_abandoned(directory: int, partial: str) -> bool:
    """Return whether the file ``partial`` is a partial image that no process has locked.

    One whose superblock is missing or damaged counts after a minute: its manager, or the host, died
    before it was on disk. One that libvirt writes counts an hour after its last write; one that
    libvirt has completed, and mapsave never had, does not count.
    """
    try:
        with descriptors.opened(directory, partial, os.O_RDONLY | os.O_NONBLOCK) as fd:
            stats = os.fstat(fd)
            if not stat.S_ISREG(stats.st_mode):
                return False
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            age = time.time() - stats.st_mtime
            if superblock.is_blank(fd):
                return age > _BLANK_AT_MOST
            try:
                block, header = formats.slots(fd)
            except (errors.NotAnImage, errors.UnsupportedImage):
                return False
            except errors.TruncatedImage:
                return partial_names.is_partial_name(partial)
            except errors.InvalidImage:
                return age > _BLANK_AT_MOST
            if block is not None:
                return block.state is State.PARTIAL or partial_names.is_partial_name(partial)
            return header is not None and not header.complete and age > _FOREIGN_AT_MOST
    except OSError:
        return False
