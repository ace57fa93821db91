"""Files of the state directory that are about one QEMU process, and go once that has gone."""

import contextlib
import os
from pathlib import Path

from mapsave.monitor import process
from mapsave.operations import journal, locks

_SUFFIX = ".json"


def path(state: Path, part: str, qemu: tuple[int, int], *, make: bool = True) -> Path:
    """Return the file of a process in the directory ``part``, which is made if missing.

    Pid, start time and boot together name the process uniquely. Raises NotPermitted, ConfigMissing.
    """
    directory = locks.state_directory(state, part) if make else state / part
    return directory / f"{qemu[0]}-{qemu[1]}-{_boot()}{_SUFFIX}"


def _boot() -> str:
    return journal.boot_id() or "unknown"


def sweep(state: Path, part: str) -> None:
    """Remove the files of processes that are gone."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # it is not there, or closed to us
        names = os.listdir(state / part)
    for file in (state / part / name for name in names if name.endswith(_SUFFIX)):
        with contextlib.suppress(OSError, ValueError):
            pid, started, boot = file.stem.split("-", 2)
            if boot != _boot() or not process.alive(int(pid), int(started)):
                file.unlink(missing_ok=True)
