"""Build images from the description of the format, without mapsave's own code.

``Image()`` is a small good image: two RAM blocks, three devices, native header. Its parts can be
changed before ``built()`` lays them out; after that ``fields`` says where each number, name and
record lies, so that tests can damage or cut it there. Pages and holes are never written.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit import files

SLOT = 4096
MIB = 1 << 20
M = 64 << 10
PARTIAL, SAVED, RESTORED = 1, 2, 3
UUID = bytes(range(16))


def slot(
    *,
    state: int = SAVED,
    sequence: int = 2,
    stream_offset: int = M,
    file_length: int = 0,
    metadata: bytes = b"{}",
    metadata_offset: int = 2 * SLOT,
    metadata_length: int | None = None,
    digest: tuple[int, int] = (0, 0),
    version: int = 1,
    must: int = 0,
    optional: int = 0,
) -> bytes:
    length = len(metadata) if metadata_length is None else metadata_length
    body = b"MAPSAVE\0" + struct.pack(
        "<IIQQQQ", version, state, sequence, must, optional, stream_offset
    )
    body += UUID + struct.pack("<QQQQQ", file_length, metadata_offset, length, *digest)
    body = (body + hashlib.sha256(metadata).digest()).ljust(SLOT - 32, b"\0")
    return body + hashlib.sha256(body).digest()


@dataclass
class Block:
    """A RAM block and the pages of it that are used."""

    name: str
    length: int
    used: tuple[int, ...] = ()
    page_size: int = 4096


@dataclass
class Device:
    """A device's section."""

    name: str
    section: int
    state: bytes
    instance: int = 0
    version: int = 1


@dataclass
class Built:
    """An image laid out: what is written where, the rest is holes. ``fields``: (offset, length)."""

    pieces: list[tuple[int, bytes]]
    size: int
    fields: dict[str, tuple[int, int]]

    def write(self, path: str | Path) -> None:
        with open(path, "wb") as file:
            for offset, data in self.pieces:
                file.seek(offset)
                file.write(data)
            file.truncate(self.size)

    def boundaries(self) -> list[int]:
        """Return every offset at which a field begins or ends."""
        ends = {offset + length for offset, length in self.fields.values()}
        return sorted({offset for offset, _ in self.fields.values()} | ends)

    def patched(self, name: str, value: int | bytes) -> "Built":
        """Return it with the field ``name`` overwritten; numbers are big-endian."""
        offset, length = self.fields[name]
        data = value if isinstance(value, bytes) else value.to_bytes(length, "big")
        return Built([*self.pieces, (offset, data)], self.size, self.fields)

    @contextmanager
    def opened(self) -> Iterator[str]:
        """Yield the path of a file that exists in memory only."""
        with files.in_memory() as fd:
            for offset, data in self.pieces:
                os.pwrite(fd, data, offset)
            os.ftruncate(fd, self.size)
            yield f"/proc/self/fd/{fd}"


def default_blocks() -> list[Block]:
    """Return blocks of which the second's bitmap does not fill its last word."""
    return [Block("mach-virt.ram", MIB, (0, 1, 2, 64, 255)), Block("/rom@etc/x", 40960, (9,))]


def default_devices() -> list[Device]:
    """Return devices whose state is nothing special."""
    return [
        Device("globalstate", 3, struct.pack(">I", 8) + b"running\0"),
        Device("cpu_common", 4, bytes(100), version=2),
        Device("0000:00:02.0/vga", 5, bytes(range(256)) * 20, instance=1),
    ]


class _Layout:
    def __init__(self, offset: int) -> None:
        self.at = offset
        self.pieces: list[tuple[int, bytes]] = []
        self.fields: dict[str, tuple[int, int]] = {}

    def put(self, name: str, data: bytes) -> None:
        self.fields[name] = (self.at, len(data))
        self.pieces.append((self.at, data))
        self.at += len(data)


@dataclass
class Image:
    """The parts of an image; ``built()`` lays them out."""

    blocks: list[Block] = field(default_factory=default_blocks)
    devices: list[Device] = field(default_factory=default_devices)
    early: list[Device] = field(default_factory=list)
    machine: bytes = b"pc-q35-10.0"
    capabilities: tuple[bytes, ...] = (b"mapped-ram",)
    subsections: tuple[tuple[bytes, bytes], ...] = ()
    iterations: int = 2
    switchover: bool = True
    description: bytes | None = None
    with_description: bool = True
    header: dict[str, Any] = field(default_factory=dict)
    metadata: bytes = b'{"guest": {"name": "toy"}}'
    offset: int = M
    ram_id: int = 2

    def built(self) -> Built:
        """Return the image laid out."""
        layout = _Layout(self.offset)
        self._head(layout)
        for number, device in enumerate(self.early):
            _device(layout, device, f"early{number}")
        self._ram(layout)
        for number, device in enumerate(self.devices):
            _device(layout, device, f"device{number}")
        layout.put("eof", b"\0")
        if self.with_description:
            text = self.description if self.description is not None else self._description()
            layout.put("description.type", b"\x06")
            layout.put("description.length", struct.pack(">I", len(text)))
            layout.put("description", text)
        layout.pieces += self._native(layout.at)
        return Built(layout.pieces, layout.at, layout.fields)

    def _native(self, size: int) -> list[tuple[int, bytes]]:
        options = {"metadata": self.metadata, "stream_offset": self.offset, "file_length": size}
        return [(0, slot(**{**options, **self.header})), (2 * SLOT, self.metadata)]

    def _description(self) -> bytes:
        devices = [
            {"name": each.name, "instance_id": each.instance, "fields": [{"name": "x", "size": 1}]}
            for each in self.early + self.devices
        ]
        configuration = {"vmsd_name": "configuration", "version": 1, "fields": []}
        whole = {"configuration": configuration, "page_size": 4096, "devices": devices}
        return json.dumps(whole).encode()

    def _head(self, layout: _Layout) -> None:
        layout.put("magic", b"QEVM")
        layout.put("version", struct.pack(">I", 3))
        layout.put("configuration", b"\x07")
        layout.put("machine.length", struct.pack(">I", len(self.machine)))
        layout.put("machine", self.machine)
        names = b"".join(bytes([len(name)]) + name for name in self.capabilities)
        listed = struct.pack(">I", len(self.capabilities)) + names
        for name, data in (*self.subsections, (b"configuration/capabilities", listed)):
            layout.put("subsection.type", b"\x05")
            layout.put("subsection.name.length", bytes([len(name)]))
            layout.put("subsection.name", name)
            layout.put("subsection.version", struct.pack(">I", 1))
            layout.put("subsection.count", data[:4])
            layout.put("subsection.data", data[4:])

    def _ram(self, layout: _Layout) -> None:
        _section_head(layout, "ram", b"\x01", self.ram_id, "ram", 0, 4)
        total = sum(block.length for block in self.blocks)
        layout.put("ram.total", struct.pack(">Q", total | 4))
        for number, block in enumerate(self.blocks):
            _block(layout, block, f"block{number}")
        self._end_of_part(layout, "setup")
        parts = [(f"part{number}", b"\x02") for number in range(self.iterations)]
        for name, kind in [*parts, ("end", b"\x03")]:
            if kind == b"\x03" and self.switchover:
                layout.put("switchover", bytes.fromhex("08 000b 0000"))
            layout.put(f"{name}.type", kind)
            layout.put(f"{name}.id", struct.pack(">I", self.ram_id))
            self._end_of_part(layout, name)

    def _end_of_part(self, layout: _Layout, name: str) -> None:
        layout.put(f"{name}.mark", struct.pack(">Q", 0x10))
        layout.put(f"{name}.footer", b"\x7e" + struct.pack(">I", self.ram_id))


def _section_head(
    layout: _Layout, what: str, kind: bytes, section: int, name: str, instance: int, version: int
) -> None:
    layout.put(f"{what}.type", kind)
    layout.put(f"{what}.id", struct.pack(">I", section))
    layout.put(f"{what}.name.length", bytes([len(name)]))
    layout.put(f"{what}.name", name.encode())
    layout.put(f"{what}.instance", struct.pack(">I", instance))
    layout.put(f"{what}.version", struct.pack(">I", version))


def _device(layout: _Layout, device: Device, what: str) -> None:
    _section_head(
        layout, what, b"\x04", device.section, device.name, device.instance, device.version
    )
    layout.put(f"{what}.state", device.state)
    layout.put(f"{what}.footer", b"\x7e" + struct.pack(">I", device.section))


def bitmap(block: Block) -> bytes:
    """Return the page bitmap of ``block``: whole 64-bit words, little endian."""
    pages = block.length // block.page_size
    words = bytearray(-(-pages // 64) * 8)
    for page in block.used:
        words[page >> 3] |= 1 << (page & 7)
    return bytes(words)


def _block(layout: _Layout, block: Block, what: str) -> None:
    layout.put(f"{what}.name.length", bytes([len(block.name)]))
    layout.put(f"{what}.name", block.name.encode())
    layout.put(f"{what}.length", struct.pack(">Q", block.length))
    bits = bitmap(block)
    bitmap_offset = layout.at + 28
    pages_offset = -(-(bitmap_offset + len(bits)) // MIB) * MIB
    layout.put(f"{what}.version", struct.pack(">I", 1))
    layout.put(f"{what}.page_size", struct.pack(">Q", block.page_size))
    layout.put(f"{what}.bitmap_offset", struct.pack(">Q", bitmap_offset))
    layout.put(f"{what}.pages_offset", struct.pack(">Q", pages_offset))
    layout.put(f"{what}.bitmap", bits)
    layout.at = pages_offset
    layout.fields[f"{what}.pages"] = (pages_offset, block.length)
    layout.at += block.length
