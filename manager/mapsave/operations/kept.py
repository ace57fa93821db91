"""QEMU processes that are saved no more: they keep what a save or restore had handed to them.

A set of descriptors that QEMU does not let go of means that it has not cleaned up, and never will:
its channels are still there, and the next save aborts it (QEMU 10.0, ``multifd-device-state.c``).
One file a process in the state directory; it goes once the process has.
"""

import json
import logging
import time
from pathlib import Path

from mapsave import errors
from mapsave.migration import parameters
from mapsave.monitor import fdset, process
from mapsave.monitor.session import Session
from mapsave.operations import locks, process_files

_log = logging.getLogger(__name__)

_PART = "kept"


def note(state: Path, qemu: tuple[int, int] | None, what: str) -> None:
    """Keep in the state directory that the process ``qemu`` (pid, start time) keeps ``what``.

    What cannot be written is logged: preflight asks QEMU for its descriptors as well.
    """
    if qemu is None:
        return
    facts = {"pid": qemu[0], "process_started": qemu[1], "boot": process.boot_id()}
    try:
        path = process_files.path(state, _PART, qemu)
        locks.replace(path, json.dumps({**facts, "time": time.time(), "what": what}))
    except OSError as error:
        _log.warning(
            "cannot record that QEMU (pid %d) has not released everything: %s", qemu[0], error
        )


def in_full(error: errors.KeptByQemu) -> str:
    """Return the message of a QEMU that does not let go, with what had gone wrong before that."""
    before = error.__context__
    first = f"{before.message}; then " if isinstance(before, errors.MapsaveError) else ""
    return f"{first}{error.message}"


async def taken_back(
    state: Path, session: Session, number: int, settings: parameters.Settings
) -> str | None:
    """Take back what a dead manager had handed over, descriptors first, then the settings.

    Returns a warning where QEMU keeps something, which is noted: the guest is what counts.
    """
    try:
        await fdset.take_back(session, number)
        await parameters.put_back(session, settings)
    except errors.KeptByQemu as error:
        note(state, process.identity(session.pid), error.message)
        return (
            f"{error.message}: its migration settings were left as they are, and mapsave will "
            "not save this QEMU process again"
        )
    return None


def known(state: Path, qemu: tuple[int, int] | None) -> str | None:
    """Return what the process ``qemu`` keeps; None where it keeps nothing that we know of.

    Raises NotPermitted.
    """
    process_files.sweep(state, _PART)
    if qemu is None:
        return None
    try:
        found = json.loads(process_files.path(state, _PART, qemu).read_text())
        return str(found["what"])
    except FileNotFoundError:
        return None
    except PermissionError as error:
        where = str(state / _PART)
        raise errors.denied(f"cannot read {where!r}: {error.strerror}", where) from None
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown: the record is unreadable"  # that it is there says enough
