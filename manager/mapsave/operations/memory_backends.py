"""The guest's memory backends: which of them are files, and which of these no QEMU can load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mapsave import errors
from mapsave.monitor import ram_blocks
from mapsave.monitor.session import Session


@dataclasses.dataclass(frozen=True)
class Backend:
    """A memory backend. ``path`` is its file, None for fresh memory; ``offset`` bytes into it.

    ``is_rom``: QEMU maps it read-only, so that it dies when it loads pages into it.
    """

    name: str
    path: str | None
    offset: int
    is_rom: bool

    def block(self, names: Iterable[str]) -> str | None:
        """Return the one among the RAM blocks ``names`` that is of this backend.

        A DIMM's has the backend's name, with its path among QEMU's objects where the machine type
        says so; a device's own memory, as of ivshmem, begins with the device. The memory of a
        virtio-pmem device has no name and is in no image.
        """
        found = (each for each in names if each == self.name or each.endswith(f"/{self.name}"))
        return next(found, None)


async def query(session: Session) -> list[Backend]:
    """Return the memory backends. Raises MonitorError."""
    found = []
    for entry in await session.execute("query-memdev"):
        name = entry.get("id")
        if name is None:
            continue
        path = await _property(session, name, "mem-path")
        is_rom = path is not None and await _property(session, name, "readonly") is True
        if is_rom:
            is_rom = await _property(session, name, "rom") != "off"
        offset = await _property(session, name, "offset") if path is not None else None
        start = offset if isinstance(offset, int) else 0
        found.append(Backend(str(name), None if path is None else str(path), start, is_rom))
    return found


async def _property(session: Session, name: str, key: str) -> object:
    try:
        return await session.execute("qom-get", {"path": f"/objects/{name}", "property": key})
    except errors.CommandRefused:
        return None


async def read_only(session: Session) -> tuple[str, ...]:
    """Return the names of RAM blocks that would be in an image, and that no QEMU can load."""
    roms = [backend for backend in await query(session) if backend.is_rom]
    if not roms:
        return ()
    names = await ram_blocks.query(session)
    return tuple(name for backend in roms if (name := backend.block(names)) is not None)
