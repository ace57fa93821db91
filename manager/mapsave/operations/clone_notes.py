"""Clones that run: no entry of the configuration says that there is a guest of such a name.

So each QEMU that a guest with the name of a clone is loaded into is noted in the state directory,
whether it maps its image or has read it. A note holds as long as that process lives.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mapsave import errors, shielded, typed
from mapsave.config import Config
from mapsave.operations import attach, process_files
from mapsave.operations.destination import Destination

_PART = "clones"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A clone that runs: its name, QEMU's pid, and the key of its monitor (``attach.Monitor``)."""

    guest: str
    pid: int
    monitor: str


async def note(config: Config, name: str, target: Destination) -> None:
    """Note, durably, that the guest ``name`` is loaded into ``target``, if it is that of a clone.

    Raises RestoreFailed, NotPermitted, ConfigMissing.
    """
    guest = config.named(name)
    if guest is None or not guest.clone_of:
        return
    if target.identity is None:
        target.warnings.append(
            f"{name}: its QEMU is not in sight: save-all and guests do not know that it runs"
        )
        return
    socket = target.session.address.removeprefix("qmp:")
    clone = Running(guest=name, pid=target.identity[0], monitor=attach.Monitor.at(socket).key)
    work = f"note in {str(config.state)!r} that clone {name!r} runs"
    need = os.W_OK | os.X_OK
    with errors.explained(work, config.state, need, otherwise=errors.RestoreFailed):
        raw = msgspec.json.encode(clone)
        await shielded.in_time(process_files.write, config.state, _PART, target.identity, raw)


def everyone(state: Path) -> Iterator[Running | errors.Refused]:
    """Yield the clones that run, and why one cannot be told. Raises Refused, NotPermitted."""
    for path, raw in process_files.living(state, _PART, "clones that run"):
        try:
            yield typed.decode(raw, Running)
        except msgspec.DecodeError:
            yield errors.Refused(
                f"{str(path)!r} does not say which clone runs in the process {path.stem}",
                hint="save that guest by its monitor, qmp:SOCKET, and remove the file",
            )
