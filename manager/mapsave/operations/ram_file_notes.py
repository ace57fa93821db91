"""How QEMUs that have a RAM file of ours would have been started without it.

Their command line names a descriptor that no later process has. So each is noted in the state
directory, durably, before its guest runs; a note holds as long as that process lives.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mapsave import errors, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

_PART = "ram-files"


class _Note(msgspec.Struct, frozen=True):
    argv: tuple[str, ...]


def note(state: Path, qemu: tuple[int, int], argv: Sequence[str]) -> None:
    """Note the command line of a process (pid, start time), durably.

    Raises OSError, NotPermitted, ConfigMissing.
    """
    from mapsave.operations import process_files

    process_files.sweep(state, _PART)
    process_files.write(state, _PART, qemu, msgspec.json.encode(_Note(tuple(argv))))


def argv(state: Path, qemu: tuple[int, int] | None) -> tuple[str, ...] | None:
    """Return the command line that was noted of a process, None without one.

    Raises NotPermitted.
    """
    if qemu is None:
        return None
    from mapsave.operations import process_files

    path = process_files.path(state, _PART, qemu, make=False)
    try:
        return typed.decode(path.read_bytes(), _Note).argv
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise errors.denied(f"cannot read {str(path)!r}: {error.strerror}", path) from None
