"""Read and write a guest's RAM from outside, byte for byte, and compare it.

QEMU tells where each RAM block lies in its own address space (``x-query-ramblock``, see
``ram_block_format()`` in its ``softmmu/physmem.c``); ``/proc/PID/mem`` (proc(5)) opens that to its
parent and to root. So ROMs, DIMMs and NUMA nodes are compared as well, on every machine type.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from tests.kit import files

_CHUNK = 4 << 20
_PAGE = 4096


@dataclass(frozen=True)
class Block:
    """A RAM block of a live QEMU: name, used length in bytes, address in QEMU's memory."""

    name: str
    length: int
    address: int


class Monitor(Protocol):
    """What runs QMP commands: ``qmp.Client``, or a libvirt domain."""

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run ``command`` and return what it returned; raise QmpError."""
        ...


class Contents(Protocol):
    """RAM that can be read: a live guest's, or a snapshot on disk."""

    def lengths(self) -> dict[str, int]:
        """Return the blocks by name, with their lengths in bytes."""
        ...

    def chunks(self, block: str) -> Iterator[bytes]:
        """Yield the block from its beginning, 4 MiB at a time."""
        ...


class LiveRam:
    """The RAM of the QEMU ``pid``, whose monitor is ``control``."""

    def __init__(self, pid: int, control: Monitor) -> None:
        self._pid = pid
        self._control = control

    def blocks(self) -> dict[str, Block]:
        """Return the RAM blocks as they are now (a restore may resize some)."""
        listing = self._control.execute("x-query-ramblock")["human-readable-text"]
        found: dict[str, Block] = {}
        for line in listing.splitlines()[1:]:
            if not line.strip():
                continue
            # Name, page size and its unit, offset, used, total, address, rw or ro.
            fields = line.split()
            # A memory backend that no machine uses has no name.
            if len(fields) < 8:
                continue
            name, _, _, _, used, _, address, *_ = fields
            found[name] = Block(name, int(used, 16), int(address, 16))
        assert found, f"QEMU lists no RAM blocks: {listing!r}"
        return found

    def largest(self) -> str:
        """Return the name of the largest block: the guest's main memory."""
        return max(self.blocks().values(), key=lambda block: block.length).name

    def lengths(self) -> dict[str, int]:
        """Return the blocks by name, with their lengths in bytes."""
        return {block.name: block.length for block in self.blocks().values()}

    def chunks(self, block: str) -> Iterator[bytes]:
        """Yield the block from its beginning, 4 MiB at a time."""
        place = self.blocks()[block]
        with self._memory(os.O_RDONLY) as memory:
            for start in range(0, place.length, _CHUNK):
                length = min(_CHUNK, place.length - start)
                data = os.pread(memory, length, place.address + start)
                assert len(data) == length, f"cannot read {block} at {start:#x}"
                yield data

    def read(self, block: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return ``length`` bytes of the block at ``offset``; to its end without ``length``."""
        place = self.blocks()[block]
        wanted = place.length - offset if length is None else length
        with self._memory(os.O_RDONLY) as memory:
            data = os.pread(memory, wanted, place.address + offset)
        assert len(data) == wanted, f"cannot read {wanted} bytes of {block} at {offset:#x}"
        return data

    def write(self, block: str, offset: int, content: bytes | bytearray) -> None:
        """Overwrite the block at ``offset``, as the guest would; meant for a paused guest."""
        place = self.blocks()[block]
        view = memoryview(content)
        assert offset + len(view) <= place.length, f"{len(view)} bytes do not fit into {block}"
        with self._memory(os.O_WRONLY) as memory:
            for start in range(0, len(view), _CHUNK):
                piece = view[start : start + _CHUNK]
                assert os.pwrite(memory, piece, place.address + offset + start) == len(piece)

    @contextmanager
    def _memory(self, flags: int) -> Iterator[int]:
        with files.opened(f"/proc/{self._pid}/mem", flags) as memory:
            yield memory


@dataclass(frozen=True)
class Snapshot:
    """A copy of all RAM blocks in a directory, one sparse file each: outlives its QEMU."""

    files: dict[str, Path]

    def called(self, old: str, new: str) -> "Snapshot":
        """Return it with another name for a block."""
        return Snapshot({new if name == old else name: path for name, path in self.files.items()})

    def lengths(self) -> dict[str, int]:
        """Return the blocks by name, with their lengths in bytes."""
        return {name: path.stat().st_size for name, path in self.files.items()}

    def chunks(self, block: str) -> Iterator[bytes]:
        """Yield the block from its beginning, 4 MiB at a time."""
        with self.files[block].open("rb") as file:
            while data := file.read(_CHUNK):
                yield data


def snapshot(contents: Contents, directory: Path) -> Snapshot:
    """Copy ``contents`` into ``directory``, which is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name, length in contents.lengths().items():
        files[name] = directory / quote(name, safe="")
        with files[name].open("wb") as file:
            file.truncate(length)
            for chunk in contents.chunks(name):
                if chunk != bytes(len(chunk)):
                    file.write(chunk)
                else:
                    file.seek(len(chunk), os.SEEK_CUR)
    return Snapshot(files)


def digests(contents: Contents) -> dict[str, str]:
    """Return the SHA-256 of every block, by name."""
    found: dict[str, str] = {}
    for name in contents.lengths():
        digest = hashlib.sha256()
        for chunk in contents.chunks(name):
            digest.update(chunk)
        found[name] = digest.hexdigest()
    return found


def assert_same(before: Contents, after: Contents) -> None:
    """Fail unless both have the same blocks with the same bytes; name the first difference."""
    assert before.lengths() == after.lengths(), "RAM blocks or their lengths differ"
    for name in before.lengths():
        place = 0
        for old, new in zip(before.chunks(name), after.chunks(name), strict=True):
            if old != new:
                raise AssertionError(_difference(name, place, old, new))
            place += len(old)


def _difference(name: str, place: int, old: bytes, new: bytes) -> str:
    starts = range(0, len(old), _PAGE)
    pages = [at for at in starts if old[at : at + _PAGE] != new[at : at + _PAGE]]
    first = next(at for at in range(pages[0], len(old)) if old[at] != new[at])
    was, now = (side[first : first + 8].hex() for side in (old, new))
    return (
        f"RAM block {name} differs first at byte {place + first:#x} (page "
        f"{(place + first) // _PAGE}): was {was}, is {now}; {len(pages)} pages differ in this "
        f"stretch of {len(old)} bytes"
    )
