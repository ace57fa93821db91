"""What the tests against real QEMU share: a guest that writes, an emulated guest, header checks."""

import hashlib
import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any, Protocol

from tests.kit import cache, cli, qemu, ram, state

MIB = 1 << 20

# The fields of a superblock slot, as docs/image-format.md has them.
_SLOT = struct.Struct("<8sIIQQQQ16sQQQQQ32s")
_SLOT_SIZE = 4096
_METADATA = 2 * _SLOT_SIZE
_SAVED, _RESTORED = 2, 3

# A firmware that never ends: it counts up one byte in each page from 0x10000 to 0x8ffff.
_FIRMWARE_SIZE = 64 << 10
_COUNTING = bytes.fromhex(
    "b80010"  # start: mov ax, 0x1000
    "8ed8"  # segment: mov ds, ax
    "31db"  # xor bx, bx
    "fe07"  # page: inc byte [bx]
    "81c30010"  # add bx, 0x1000
    "75f8"  # jnz page
    "80c410"  # add ah, 0x10
    "80fc90"  # cmp ah, 0x90
    "75ec"  # jne segment
    "ebe7"  # jmp start
)
_RESET = bytes.fromhex("ea000000f0")  # jmp 0xf000:0
COUNTED = (0x10000, 0x80000)  # where the firmware writes: start and length in main memory


class Side(Protocol):
    """A guest of real QEMU or of the emulator."""

    @property
    def address(self) -> str: ...

    def state(self) -> state.State: ...

    def snapshot_ram(self, directory: Path) -> ram.Snapshot: ...


def counting_firmware(directory: Path) -> list[str]:
    """Return arguments for a guest that changes its memory for as long as it runs."""
    path = directory / "counting.bin"
    content = bytearray(_FIRMWARE_SIZE)
    content[: len(_COUNTING)] = _COUNTING
    content[-16 : -16 + len(_RESET)] = _RESET
    path.write_bytes(content)
    return ["-bios", str(path)]


def counts(guest: qemu.Qemu) -> bytes:
    """Return the bytes that the counting firmware counts up, one of each page."""
    start, length = COUNTED
    return guest.ram.read(guest.ram.largest(), start, length)[::4096]


def save(site: cli.Site, guest: Side, *options: str) -> Path:
    """Save ``guest`` by the command and return the image's path; fail unless it says done."""
    done = site.run("save", guest.address, "--image", "it.mapsave", "--json", *options, check=0)
    path = site.images / "it.mapsave"
    assert done.json()["image"] == str(path)
    return path


def restore(site: cli.Site, image: Path, guest: Side, *options: str) -> dict[str, Any]:
    """Restore into ``guest``, which waits; leave it paused. Return what the command printed."""
    into = ["--into", guest.address, "--paused", "--json"]
    return site.run("restore", str(image), *into, *options, check=0).json()


def cached_pages(image: Path) -> tuple[int, int]:
    """Return how many pages of main memory in ``image`` are in the page cache, and of how many:
    what was written with O_DIRECT is not.

    Meant for 64 MiB of main memory, the first block. Asked by mincore(2), which reads nothing: a
    read with RWF_NOWAIT begins to read what is missing, and now and then has it before it looks.
    """
    cached, asked = 0, 0
    with image.open("rb") as file:
        there = cache.of_descriptor(file.fileno(), end=56 * MIB)
        end = 8 * MIB  # away from the ends: there the bitmaps are, which were read back
        while (start := os.lseek(file.fileno(), end, os.SEEK_DATA)) < 56 * MIB:
            end = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), 56 * MIB)
            asked += (end - start) // mmap.PAGESIZE
            cached += sum(there[start // mmap.PAGESIZE : end // mmap.PAGESIZE])
    return cached, asked


def assert_header_intact(path: Path, *, restored: bool = False, offset: int = MIB) -> None:
    """Fail unless the header of an image is whole and QEMU wrote nothing below ``offset``.

    Read as docs/image-format.md has it, not by mapsave: slots whose checksums fit, the newest with
    the right state, in each metadata area JSON and then zeros, the stream's magic at ``offset``.
    """
    with path.open("rb") as file:
        header = file.read(offset)
        assert file.read(4) == b"QEVM"
    newest = max(_slot(header[start : start + _SLOT_SIZE]) for start in (0, _SLOT_SIZE))
    _, state_now, stream_offset, place, length, digest = newest
    assert state_now == (_RESTORED if restored else _SAVED)
    assert stream_offset == offset
    assert hashlib.sha256(header[place : place + length]).digest() == digest
    middle = (_METADATA + offset) // 2
    for area in (header[_METADATA:middle], header[middle:]):
        assert json.loads(area.rstrip(b"\0"))["guest"], "not only metadata in the header area"


def _slot(slot: bytes) -> tuple[int, int, int, int, int, bytes]:
    """Return sequence, state, stream offset, the metadata's place, length and checksum."""
    fields = _SLOT.unpack_from(slot)
    assert fields[0] == b"MAPSAVE\0"
    assert not any(slot[_SLOT.size : -32])
    assert hashlib.sha256(slot[:-32]).digest() == slot[-32:], "a slot is torn"
    return fields[3], fields[2], fields[6], fields[9], fields[10], fields[13]
