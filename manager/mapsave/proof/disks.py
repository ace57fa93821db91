"""The guest's disks as null ones: of the same place, size and access, with nothing behind them.

QEMU opens none of the guest's disks. How large one is mapsave reads from a local file itself, as
far as that says: pflash and SD cards are loaded into those of their own size alone.
"""

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence

from mapsave import qemu_options
from mapsave.qemu_options import Properties

# What of -drive is about the place, not about the medium (QEMU's qemu-options.hx, blockdev.c). The
# guest sees whether a write cache is on.
_PLACE = frozenset(
    (
        *("id", "if", "index", "bus", "unit", "media", "werror", "rerror"),
        *("readonly", "read-only", "cache", "cache.writeback"),
    )
)
_MEDIUM = frozenset(("file", "driver", "format", "filename"))
# Options that name a file, and what of -drive they stand for (10.0, system/vl.c).
SHORT = {
    "hda": "index=0,media=disk",
    "hdb": "index=1,media=disk",
    "hdc": "index=2,media=disk",
    "hdd": "index=3,media=disk",
    "cdrom": "index=2,media=cdrom",
    "fda": "index=0,if=floppy",
    "fdb": "index=1,if=floppy",
    "pflash": "if=pflash",
    "mtdblock": "if=mtd",
    "sd": "index=0,if=sd",
}
_QCOW2 = b"QFI\xfb"
_QCOW2_SIZE = slice(24, 32)  # docs/interop/qcow2.txt
_SECTOR = 512  # QEMU has whole ones of a file
_DEPTH = 16


class Disks:
    """The disks of a command line; relative paths are relative to ``cwd``. Blocks."""

    def __init__(self, argv: Sequence[str], cwd: str | None) -> None:
        self._cwd = cwd or os.getcwd()
        self._nodes = {
            str(option.text("node-name")): option.properties
            for option in qemu_options.options(argv, "blockdev")
        }

    def drive(self, found: Properties) -> Properties:
        """Return the properties of ``-drive`` for a null disk in its place."""
        kept = {key: value for key, value in found.items() if key in _PLACE}
        has_medium = any(found[key] for key in found if key.partition(".")[0] in _MEDIUM)
        return kept | self._null(found) if has_medium else kept

    def short(self, name: str, path: str) -> str:
        """Return the value of ``-drive`` for an option such as ``-hda``."""
        return f"{SHORT[name]},{qemu_options.written('drive', self._null({'file': path}))}"

    def node(self, found: Properties) -> Properties:
        """Return the properties of ``-blockdev`` for a null node of the same name."""
        kept = {key: found[key] for key in ("node-name", "read-only") if key in found}
        return self._null(found) | kept

    def _null(self, properties: Mapping[str, object]) -> Properties:
        size = None
        with contextlib.suppress(OSError, ValueError):
            size = self._size(properties, _DEPTH)
        known = {} if size is None else {"size": size}
        return {"driver": "null-co", "read-zeroes": True, **known}

    def _size(self, properties: Mapping[str, object], depth: int) -> int | None:
        """Return a disk's size as the guest sees it; None where no local file says. May raise."""
        if depth == 0:
            return None
        own = properties.get("size")
        if own is not None and str(own).isdecimal():
            return int(str(own))
        path = properties.get("filename", properties.get("file.filename"))
        below = properties.get("file")
        if path is None and isinstance(below, Mapping):
            return self._size(below, depth - 1)
        if path is None and isinstance(below, str):
            if below in self._nodes:
                return self._size(self._nodes[below], depth - 1)
            path = below
        return _size_of_file(os.path.join(self._cwd, str(path))) if path else None


def _size_of_file(path: str) -> int | None:
    """Return how large the disk in a file is. Raises OSError, ValueError."""
    if not (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISBLK(mode)):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.pread(fd, _QCOW2_SIZE.stop, 0)
        if head.startswith(_QCOW2):
            return int.from_bytes(head[_QCOW2_SIZE], "big")
        return -(-os.lseek(fd, 0, os.SEEK_END) // _SECTOR) * _SECTOR
    finally:
        os.close(fd)
