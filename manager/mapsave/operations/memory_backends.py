"""The guest's memory backends: which of them are files, and which of these no QEMU can load."""

import dataclasses
from collections.abc import Awaitable, Iterable, Mapping

from mapsave import errors, together
from mapsave.monitor.ram_blocks import RamBlock
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
    names = [entry.get("id") for entry in await session.execute("query-memdev")]
    return await together.all_of(_backend(session, str(name)) for name in names if name is not None)


async def _backend(session: Session, name: str) -> Backend:
    path = await _property(session, name, "mem-path")
    if path is None:
        return Backend(name, None, 0, is_rom=False)
    read_only, rom, offset = await together.all_of(
        _property(session, name, key) for key in ("readonly", "rom", "offset")
    )
    start = offset if isinstance(offset, int) else 0
    return Backend(name, str(path), start, is_rom=read_only is True and rom != "off")


async def _property(session: Session, name: str, key: str) -> object:
    try:
        return await session.execute("qom-get", {"path": f"/objects/{name}", "property": key})
    except errors.CommandRefused:
        return None


async def read_only(session: Session, blocks: Awaitable[Mapping[str, RamBlock]]) -> tuple[str, ...]:
    """Return the names of RAM ``blocks`` that would be in an image, and that no QEMU can load."""
    roms = [backend for backend in await query(session) if backend.is_rom]
    names = await blocks
    return tuple(name for backend in roms if (name := backend.block(names)) is not None)
