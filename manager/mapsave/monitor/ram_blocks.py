"""The guest's RAM: its size, and QEMU's blocks as ``x-query-ramblock`` lists them for people."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from mapsave import errors, instant_names

if TYPE_CHECKING:
    from mapsave.monitor.session import Session

_LINE = re.compile(
    r"\s*(?P<name>\S.*?)\s+\S+ \S+\s+0x[0-9a-f]+"  # name, page size, offset
    r"\s+0x(?P<used>[0-9a-f]+)\s+0x(?P<total>[0-9a-f]+)"
    r"(?:\s+0x(?P<address>[0-9a-f]+)(?:\s+(?P<access>r[ow]))?)?"
)


_VIRTIO_MEM = "virtio-mem"


@dataclasses.dataclass(frozen=True)
class RamBlock:
    """A RAM block: used and largest length in bytes, and where it is in QEMU's address space.

    ``read_only``: QEMU itself cannot write to it, or only the guest cannot (a ROM). With
    ``has_alias`` QEMU calls it otherwise (``instant_names.py``).
    """

    used: int
    total: int
    address: int | None
    read_only: bool
    has_alias: bool = False


@dataclasses.dataclass(frozen=True)
class Memory:
    """The sizes of a guest's RAM in bytes: at start, and plugged in since."""

    base: int
    plugged: int

    @property
    def total(self) -> int:
        """All of the guest's RAM, ROMs and video memory not counted."""
        return self.base + self.plugged


async def memory(session: Session) -> Memory:
    """Return the sizes of the guest's RAM."""
    found = await session.execute("query-memory-size-summary")
    return Memory(int(found["base-memory"]), int(found.get("plugged-memory", 0)))


async def plugged_once_loaded(session: Session, found: Memory) -> tuple[int, int]:
    """Return the least and the most that may be plugged in once a guest is loaded.

    What virtio-mem devices have plugged comes with the guest, up to their size.
    """
    devices = await session.execute("query-memory-devices")
    mems = [each["data"] for each in devices if each["type"] == _VIRTIO_MEM]
    fixed = found.plugged - sum(int(each["size"]) for each in mems)
    return fixed, fixed + sum(int(each["max-size"]) for each in mems)


async def query(session: Session) -> dict[str, RamBlock]:
    """Return the RAM blocks by name; empty where this QEMU does not list them.

    Memory without a name is in no migration stream: of a backend that no device uses, or of a
    virtio-pmem device. It is left out. Raises MonitorError.
    """
    try:
        reply = await session.execute("x-query-ramblock")
    except errors.CommandRefused:
        return {}
    blocks = {}
    for line in str(reply["human-readable-text"]).splitlines()[1:]:
        # Right-aligned, so that a block without a name begins with its page size.
        match = _LINE.match(line)
        if match is None:
            continue
        address = match["address"]
        name = instant_names.original(match["name"])
        blocks[name] = RamBlock(
            used=int(match["used"], 16),
            total=int(match["total"], 16),
            address=int(address, 16) if address is not None else None,
            read_only=match["access"] == "ro",
            has_alias=name != match["name"],
        )
    return blocks
