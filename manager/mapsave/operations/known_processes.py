"""What QEMU processes said of their machine at earlier saves, and cannot change while they run.

Processors and machine options are some seventy properties, each of which is one command. They are
kept in the state directory, for the process (pid, start time, boot) of that program (its inode). A
record that is damaged or of another program counts as none: QEMU is asked again.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from mapsave import errors
from mapsave.image import ownership
from mapsave.image.metadata import HardwarePart
from mapsave.operations import process_files, trust

_PART = "processes"
_MOST_BYTES = 1 << 20


class _Known(msgspec.Struct, frozen=True):
    """``program``: device and inode. ``digest``: of ``hardware`` as it is written."""

    program: tuple[int, int]
    digest: str
    hardware: HardwarePart


def recall(state: Path, qemu: tuple[int, int] | None) -> HardwarePart | None:
    """Return what is known of the process ``qemu`` (pid, start time), its vCPUs left out.

    None where nothing is known for certain. Blocks for a moment.
    """
    if qemu is None:
        return None
    with contextlib.suppress(OSError, ValueError, errors.MapsaveError):
        with process_files.path(state, _PART, qemu, make=False).open("rb") as file:
            if ownership.of_file(file.name, file.fileno(), trust.users()):
                return None
            found = msgspec.json.decode(file.read(_MOST_BYTES), type=_Known)
        if found.program == _program(qemu[0]) and found.digest == _digest(found.hardware):
            return found.hardware
    return None


def remember(state: Path, qemu: tuple[int, int] | None, hardware: HardwarePart | None) -> None:
    """Keep what the process ``qemu`` said; what cannot be written is asked again. Blocks."""
    if qemu is None or hardware is None:
        return
    fixed: HardwarePart = {**hardware}
    fixed.pop("vcpus", None)  # change by hot plug
    if fixed == recall(state, qemu):
        return
    with contextlib.suppress(OSError, errors.MapsaveError):
        process_files.sweep(state, _PART)
        path = process_files.path(state, _PART, qemu)
        known = _Known(_program(qemu[0]), _digest(fixed), fixed)
        # Not brought to stable storage: what is left of it after a crash is of another boot.
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_bytes(msgspec.json.encode(known))
        os.replace(new, path)


def _program(pid: int) -> tuple[int, int]:
    stats = os.stat(f"/proc/{pid}/exe")
    return stats.st_dev, stats.st_ino


def _digest(hardware: HardwarePart) -> str:
    return hashlib.sha256(msgspec.json.encode(hardware, order="sorted")).hexdigest()
