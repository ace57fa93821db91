"""Files of the state directory that are about one QEMU process, and go once that has gone."""

import contextlib
import os
from pathlib import Path

from mapsave import errors
from mapsave.monitor import process
from mapsave.operations import locks

_SUFFIX = ".json"


def path(state: Path, part: str, qemu: tuple[int, int], *, make: bool = True) -> Path:
    """Return the file of a process in the directory ``part``, which is made if missing.

    Pid, start time and boot together name the process uniquely. Raises NotPermitted, ConfigMissing.
    """
    directory = locks.state_directory(state, part) if make else state / part
    return directory / f"{qemu[0]}-{qemu[1]}-{_boot()}{_SUFFIX}"


def write(state: Path, part: str, qemu: tuple[int, int], text: bytes) -> None:
    """Write the file of a process, durably. Raises OSError, and as ``path`` does."""
    file = path(state, part, qemu)
    locks.replace(file, text)
    locks.sync_directory(file.parent)


def _boot() -> str:
    return process.boot_id() or "unknown"


def sweep(state: Path, part: str) -> None:
    """Remove the files of processes that are gone."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # it is not there, or closed to us
        names = os.listdir(state / part)
    for file in (state / part / name for name in names if name.endswith(_SUFFIX)):
        with contextlib.suppress(OSError, ValueError):
            if not _lives(file):
                file.unlink(missing_ok=True)


def living(state: Path, part: str, what: str) -> list[tuple[Path, bytes]]:
    """Return the files of processes that live, which tell of ``what``, and their contents.

    A file that cannot be read is empty: it says no less of its process than a damaged one. Raises
    Refused, NotPermitted where the directory cannot be read.
    """
    directory = state / part
    sweep(state, part)
    found: list[tuple[Path, bytes]] = []
    try:
        for file in map(directory.joinpath, os.listdir(directory)):
            # Not one that is being written, nor one whose process is gone.
            with contextlib.suppress(FileNotFoundError, ValueError):
                if file.suffix == _SUFFIX and _lives(file):
                    found.append((file, _content(file)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise errors.of_os_error(
            error,
            f"cannot look in {str(directory)!r} for {what}: {error.strerror}",
            directory,
            otherwise=errors.Refused,
            hint="fix that, or set 'state:' in the configuration",
        ) from None
    return found


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError:
        return b""


def _lives(file: Path) -> bool:
    """Return whether the process of a file lives. Raises ValueError where the name is no such."""
    pid, started, boot = file.stem.split("-", 2)
    return boot == _boot() and process.alive(int(pid), int(started))
