"""What QEMUs said of their machines, kept for others of the same program and command line.

The options of machine and processors are some seventy properties, each of which is one command.
Program and command line settle them on one boot of a host, be it for the same guest at another
start or for guests alike. QEMU is asked each time for the features, in which the host's processor
and KVM have a part, and for the processors that there are. A record that is damaged, or that others
could have written, counts as none.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mapsave import errors, together, typed
from mapsave.image import ownership
from mapsave.image.metadata import HardwarePart
from mapsave.monitor import process
from mapsave.monitor.session import Session
from mapsave.operations import answering, hardware, locks, trust

_PART = "machines"
_SUFFIX = ".json"
_MOST_BYTES = 1 << 20
_MOST = 500  # records
# A file says more than the command line does.
_FILES = frozenset(("-readconfig",))
# Options that are no part of machine or processors, with a value and without (QEMU's
# qemu-options.hx); one that is not known here counts.
_APART = re.compile(
    "-(add-fd|append|audiodev|blockdev|boot|chardev|D|device|display|drive|fw_cfg|incoming|initrd"
    "|kernel|loadvm|mon|monitor|msg|name|netdev|pidfile|qmp|rtc|sandbox|serial|smbios|spice|trace"
    "|uuid|vnc)"
)
_SWITCHES_APART = frozenset(("-daemonize", "-no-reboot", "-no-shutdown", "-S"))
# Objects likewise; others may make the guest a confidential one.
_OBJECT_APART = re.compile(r'(?:\{"qom-type":")?(?:iothread|memory-backend-|rng-|secret|tls-)')


class Machine(NamedTuple):
    """The type of a machine, as resolved, and what its guest sees, as ``hardware.query`` says."""

    type: str
    hardware: HardwarePart | None


class Settled(msgspec.Struct, frozen=True):
    """What program and command line settle."""

    type: str
    options: hardware.Options


class _Known(msgspec.Struct, frozen=True):
    """``digest``: of ``settled`` as it is written."""

    digest: str
    settled: Settled


async def query(session: Session, state: Path) -> Machine:
    """Return what machine a guest has; keep what is new of it in the state directory."""
    name = key(session.pid) if session.pid is not None else None
    if (known := recall(state, name)) is not None:
        return Machine(known.type, await hardware.query(session, known.options))
    async with together.group() as tasks:
        asked_type = tasks.create_task(hardware.machine_type(session))
        seen_by_guest = tasks.create_task(hardware.query(session))
    found = Machine(asked_type.result(), seen_by_guest.result())
    if name is not None and found.hardware is not None:
        settled = Settled(found.type, hardware.options(found.hardware))
        await answering.noted(remember, state, name, settled)
    return found


def key(pid: int) -> str | None:
    """Return what names program, command line, user and boot; None where they do not say it all.

    A later start of the same guest, or a guest alike, has the same key.
    """
    words = relevant(process.command_line(pid))
    if not words or not _FILES.isdisjoint(words):
        return None
    try:
        program, user = os.stat(f"/proc/{pid}/exe"), os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    version = (program.st_dev, program.st_ino, program.st_size, program.st_mtime_ns)
    facts = (process.boot_id(), user, version, words)
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


def relevant(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line that machine and processors may depend on."""
    found: list[str] = []
    words = iter(argv)
    for word in words:
        option = word[1:] if word.startswith("--") else word
        if option in _SWITCHES_APART:
            continue
        if _APART.fullmatch(option):
            next(words, None)
            continue
        found.append(option)
        if option == "-object" and _OBJECT_APART.match(value := next(words, "")):
            found.pop()
        elif option == "-object":
            found.append(value)
    return found


def recall(state: Path, name: str | None) -> Settled | None:
    """Return what is known under ``name``; None where nothing is for certain. Blocks briefly."""
    if name is None:
        return None
    with contextlib.suppress(OSError, ValueError, errors.MapsaveError):
        with (state / _PART / f"{name}{_SUFFIX}").open("rb") as file:
            if ownership.of_file(file.name, file.fileno(), trust.users()):
                return None
            found = typed.decode(file.read(_MOST_BYTES), _Known)
        if found.digest == _digest(found.settled):
            return found.settled
    return None


def remember(state: Path, name: str, settled: Settled) -> None:
    """Keep ``settled`` under ``name``; what cannot be written is asked again. Blocks briefly."""
    with contextlib.suppress(OSError, errors.MapsaveError):
        directory = locks.state_directory(state, _PART)
        locks.make_room(directory, _MOST)
        known = msgspec.json.encode(_Known(_digest(settled), settled))
        locks.replace(directory / f"{name}{_SUFFIX}", known.decode())


def _digest(settled: Settled) -> str:
    return hashlib.sha256(msgspec.json.encode(settled, order="sorted")).hexdigest()
