"""Build legacy streams with x-ignore-shared, in which pages are records, without mapsave's code.

``Legacy()`` is a small good one: a shared block without records, another one of four pages.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.image import build
from tests.kit import files

PAGE = 4096
ZERO, DATA, CONTINUE = 0x02, 0x08, 0x20


@dataclass
class Record:
    """A page: its number, flags beside CONTINUE, the name of its block unless it continues."""

    page: int
    data: bytes | None
    name: str | None = None
    flags: int | None = None
    fill: bytes = b"\0"

    def encoded(self) -> bytes:
        kind = ZERO if self.data is None else DATA
        flags = kind if self.flags is None else self.flags
        head = struct.pack(">Q", self.page * PAGE | flags | (0 if self.name else CONTINUE))
        if self.name:
            head += bytes([len(self.name)]) + self.name.encode()
        return head + (self.fill if self.data is None else self.data)


def contents(number: int) -> bytes:
    """Return a page that tells which one it is."""
    return bytes([number]) * PAGE


def default_records() -> list[list[Record]]:
    """Return the records of the set-up, of one part and of the end."""
    return [
        [],
        [Record(0, contents(10), "small"), Record(1, None), Record(2, contents(12))],
        [Record(3, None, "small"), Record(0, None, "other")],
    ]


@dataclass
class Legacy:
    """The parts of a stream; ``built`` returns its bytes."""

    blocks: list[tuple[str, int]] = field(
        default_factory=lambda: [("shared", 1 << 20), ("small", 4 * PAGE), ("other", PAGE)]
    )
    records: list[list[Record]] = field(default_factory=default_records)
    capabilities: tuple[bytes, ...] = (b"x-ignore-shared",)
    machine: bytes = b"pc-q35-10.0"
    early: bytes = b""
    ram_id: int = 2

    def built(self) -> bytes:
        whole = build.Image(machine=self.machine, capabilities=self.capabilities, offset=0)
        built = whole.built()
        stream = b"".join(data for _, data in sorted(built.pieces[: self._ram_at(built)]))
        after = built.fields["device0.type"][0]
        rest = b"".join(data for offset, data in sorted(built.pieces[:-2]) if offset >= after)
        return stream + self.early + self._ram() + rest

    def _ram_at(self, built: build.Built) -> int:
        return [offset for offset, _ in built.pieces].index(built.fields["ram.type"][0])

    def _ram(self) -> bytes:
        section = struct.pack(">I", self.ram_id)
        head = b"\x01" + section + b"\x03ram" + struct.pack(">II", 0, 4)
        head += struct.pack(">Q", sum(length for _, length in self.blocks) | 4)
        for name, length in self.blocks:
            head += bytes([len(name)]) + name.encode() + struct.pack(">QQ", length, 1 << 32)
        kinds = [b"", *[b"\x02"] * (len(self.records) - 2), bytes.fromhex("08000b0000") + b"\x03"]
        for kind, records in zip(kinds, self.records, strict=True):
            head += kind + (section if kind else b"")
            head += b"".join(record.encoded() for record in records)
            head += struct.pack(">Q", 0x10) + b"\x7e" + section
        return head


@contextmanager
def opened(data: bytes) -> Iterator[int]:
    """Yield a file with ``data``, in memory."""
    with files.in_memory() as fd:
        os.pwrite(fd, data, 0)
        yield fd
