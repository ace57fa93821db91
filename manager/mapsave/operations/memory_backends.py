"""The guest's memory backends: which of them are files, and which of these no QEMU can load."""

import dataclasses
from collections.abc import Iterable, Sequence

from mapsave import errors, together
from mapsave.monitor.session import Session


@dataclasses.dataclass(frozen=True)
class Backend:
    """A memory backend. ``path`` is its file, None for fresh memory; ``offset`` bytes into it.

    ``is_rom``: QEMU maps it read-only, so that it dies when it loads pages into it. ``is_shared``:
    what the guest writes goes into the file, or is seen by others who map that memory.
    """

    name: str
    path: str | None
    offset: int
    is_rom: bool
    is_shared: bool = False

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
    listed = await session.execute("query-memdev")
    return await together.all_of(
        _backend(session, str(entry["id"]), is_shared=entry.get("share") is True)
        for entry in listed
        if entry.get("id") is not None
    )


async def _backend(session: Session, name: str, *, is_shared: bool) -> Backend:
    path = await _property(session, name, "mem-path")
    if path is None:
        return Backend(name, None, 0, is_rom=False, is_shared=is_shared)
    read_only, rom, offset = await together.all_of(
        _property(session, name, key) for key in ("readonly", "rom", "offset")
    )
    start = offset if isinstance(offset, int) else 0
    return Backend(
        name, str(path), start, is_rom=read_only is True and rom != "off", is_shared=is_shared
    )


async def _property(session: Session, name: str, key: str) -> object:
    try:
        return await session.execute("qom-get", {"path": f"/objects/{name}", "property": key})
    except errors.CommandRefused:
        return None


def read_only(found: Sequence[Backend], blocks: Iterable[str]) -> tuple[str, ...]:
    """Return the names of RAM ``blocks`` that would be in an image, and that no QEMU can load."""
    names = list(blocks)
    roms = (backend.block(names) for backend in found if backend.is_rom)
    return tuple(name for name in roms if name is not None)
