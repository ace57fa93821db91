"""A guest's RAM that is in shared files: which blocks, and whether images can share their extents.

QEMU leaves RAM blocks of a ``memory-backend-file`` with ``share=on`` out of a stream with
x-ignore-shared (10.0, ``migrate_ram_is_ignored``), so each of them has to be put into the image by
a reflink. What is no such block is written, which takes time while the guest is paused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from typing import TYPE_CHECKING

from mapsave import errors, units
from mapsave.image import descriptors, reflink
from mapsave.migration import parameters
from mapsave.monitor import mappings, process
from mapsave.monitor.mappings import File, Mapping
from mapsave.operations import ram_remedies

if TYPE_CHECKING:
    from mapsave.image import store
    from mapsave.monitor.ram_blocks import RamBlock
    from mapsave.operations.facts import Facts
    from mapsave.operations.memory_backends import Backend
    from mapsave.operations.ram_remedies import Remedies

# RAM that is no shared file is written while the guest is paused: video memory, ROMs. In bytes.
MOST_WRITTEN = 256 * units.MIB
_OVERHEAD = 64 * units.MIB  # gaps between the blocks, the states of the devices
INSTEAD = "use 'mapsave save --then resume'"
_WHAT = "the guest's RAM must be a shared file on the file system of the images, XFS or btrfs"


@dataclasses.dataclass(frozen=True)
class Part:
    """A RAM block that is in a shared file: ``length`` bytes from ``offset`` of it on.

    ``path`` is that of QEMU's option, as it can be reached from here; ``mapped`` is that of the
    file itself, whatever its name is, which only root may open.
    """

    block: str
    length: int
    path: str
    mapped: str
    offset: int
    file: File


@dataclasses.dataclass(frozen=True)
class SharedRam:
    """All blocks that are in shared files; ``written`` bytes are in others."""

    parts: tuple[Part, ...]
    written: int

    @property
    def bytes(self) -> int:
        """How much RAM is in shared files."""
        return sum(part.length for part in self.parts)


def find(found: Facts, held: store.Directory) -> SharedRam:
    """Return the RAM that images in the directory can share. Blocks.

    Raises NoCheckpoint, with what to change, where it is not enough for a checkpoint.
    """
    if found.pid is None or not found.blocks:
        raise errors.NoCheckpoint(
            f"guest {found.name!r}: its QEMU's process or RAM blocks cannot be seen from here",
            hint="run mapsave on the host of the guest, outside of containers",
        )
    if parameters.IGNORE_SHARED not in found.settings.capabilities:
        raise errors.MissingCapability(
            f"QEMU {found.version} lacks {parameters.IGNORE_SHARED}",
            missing=[parameters.IGNORE_SHARED],
        )
    if (system := reflink.file_system(held.fd)) is None:
        raise errors.NoCheckpoint(
            f"{held.path!r} is not on XFS or btrfs, so images there cannot share the guest's RAM",
            hint=f"keep images on such a file system; {_WHAT}",
        )
    backends = {
        name: each for each in found.backends if (name := each.block(found.blocks)) is not None
    }
    try:
        maps = mappings.everything(found.pid)
    except OSError as error:
        raise errors.NoCheckpoint(
            f"the memory of QEMU (pid {found.pid}) cannot be looked at: {error.strerror}",
            hint="run mapsave as root, or as the user of that QEMU",
        ) from None
    parts, others = [], {}
    for name, block in found.blocks.items():
        backend = backends.get(name)
        if backend is not None and backend.is_shared and backend.path is not None:
            part = _part(found.pid, name, block, backend, maps)
            _try(part, backend, held, system, ram_remedies.of(found, backend, held))
            parts.append(part)
        else:
            others[name] = block.used
    written = sum(others.values())
    if written > MOST_WRITTEN or not parts:
        name = max(others, key=lambda name: others[name])
        remedies = ram_remedies.of(found, backends.get(name), held)
        raise errors.NoCheckpoint(
            f"RAM block {name!r} ({units.format_size(others[name])}) is not a shared file: it "
            "would have to be written while the guest is paused",
            hint=f"{remedies.shared(others[name])}: {_WHAT}; or {INSTEAD}",
        )
    shared = SharedRam(tuple(parts), written)
    _check_room(shared, found.pid, held, system)
    return shared


def _check_room(shared: SharedRam, pid: int, held: store.Directory, system: str) -> None:
    """Raise NoRoom where there is less than the guest may need for what it writes from now on.

    Each page needs a block of its own then; where there is none QEMU is killed. XFS reserves blocks
    around each as well, up to as many again, for some minutes (its CoW extent size hint).
    """
    free = held.free_bytes(with_reserved=process.may_use_reserved_blocks(pid))
    times, reserved = (2, ", and as many that XFS reserves") if system == "XFS" else (1, "")
    needed = times * shared.bytes + shared.written + _OVERHEAD
    if free < needed:
        size = units.format_size
        raise errors.NoRoom(
            f"{held.path!r}: {size(free)} free, {size(needed)} needed: as much as the guest can "
            f"change of its RAM, which needs blocks of its own from the checkpoint on{reserved}",
            hint="free some space, or use a larger file system",
            free_bytes=free,
            needed_bytes=needed,
        )


def _part(pid: int, name: str, block: RamBlock, backend: Backend, maps: list[Mapping]) -> Part:
    """Return where a block is in its file. Raises NoCheckpoint where it is not as QEMU says."""
    start = block.address
    mapping = next((each for each in maps if start is not None and start in each.addresses), None)
    if start is None or mapping is None or not mapping.is_shared or mapping.file is None:
        raise errors.NoCheckpoint(
            f"RAM block {name!r}: QEMU (pid {pid}) does not map the file {backend.path!r}, shared",
        )
    offset, file = mapping.offset + start - mapping.addresses.start, File(*_identity(mapping))
    # Parts of one file that have other attributes (NUMA policies) are several mappings.
    end = start
    for each in maps:
        if each.addresses.start <= end < each.addresses.stop:
            if (
                not each.is_of(file)
                or each.offset + end - each.addresses.start != offset + end - start
            ):
                break
            end = each.addresses.stop
    if end < start + block.used:
        raise errors.NoCheckpoint(
            f"RAM block {name!r}: QEMU (pid {pid}) maps only {end - start} bytes of it from "
            f"{backend.path!r}"
        )
    path = process.path_seen_by(pid, str(backend.path))
    return Part(name, block.used, path, mapping.file, offset, file)


def _identity(mapping: Mapping) -> tuple[str, int]:
    return mapping.device, mapping.inode


def opened(part: Part) -> contextlib.AbstractContextManager[int]:
    """Open the file of a block for reading, the very one that QEMU maps. Raises OSError."""
    try:
        fd = _open(part.path)
    except OSError:
        return descriptors.closing(_open(part.mapped))
    # QEMU may have removed the name, and another file have it since.
    if _is_it(fd, part.file):
        return descriptors.closing(fd)
    os.close(fd)
    return descriptors.closing(_open(part.mapped))


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _is_it(fd: int, file: File) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and File.of(fd) == file
    except (OSError, ValueError):  # it is empty, for instance
        return False


def _try(
    part: Part, backend: Backend, held: store.Directory, system: str, remedies: Remedies
) -> None:
    """Share the first block of the file with one in the directory. Raises NoCheckpoint."""
    what = f"RAM block {part.block!r}, the file {backend.path!r},"
    try:
        size = reflink.block_size(held.fd)
        if part.offset % size or part.length % size:
            raise errors.NoCheckpoint(
                f"{what} does not begin and end at a multiple of {size} bytes, the "
                f"block of {system}",
                hint=remedies.sized(),
            )
        with opened(part) as fd, descriptors.unnamed(held.fd) as target:
            reflink.share(fd, part.offset, size, target, 0)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise errors.NoCheckpoint(
                f"{what} is not on the file system of {held.path!r}",
                hint=f"{remedies.placed()}, or keep the images where that file is",
            ) from None
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            raise errors.NoCheckpoint(
                f"{what} cannot share its blocks with a file in {held.path!r}: {error.strerror}",
                hint="make the file system with reflinks (mkfs.xfs -m reflink=1), and give RAM "
                "file and images the same attributes (chattr +C)",
            ) from None
        raise errors.NoCheckpoint(
            f"{what} cannot be opened or shared with a file in {held.path!r}: {error.strerror}",
            hint="run mapsave as root, or as the user of that QEMU",
        ) from None
