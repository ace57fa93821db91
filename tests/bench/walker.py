"""A guest whose firmware walks pages of its memory: one read of each page, run by run.

It writes ``S`` before the first one and ``E`` after the last one to a file. What it walks is data
of the firmware, so that each restore begins from the reset, at the same instruction.
"""

import random
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
_SIZE = 64 << 10
_BASE = 0xF0000  # where the firmware is
_PROTECTED, _GDT, _TABLE = 0x40, 0x80, 0x100  # within it
_MOST_RUNS = (_SIZE - _TABLE - 32) // 8
_REAL = bytes.fromhex(
    "fa"  # cli
    "ba0204"  # mov dx, 0x402
    "b053ee"  # out dx, 'S'
    "2e660f0116a000"  # lgdt [cs:0xa0]
    "0f20c00c010f22c0"  # or cr0, 1
    "66ea40000f000800"  # jmp 0x08:_BASE + _PROTECTED
)
_WALK = bytes.fromhex(
    "66b810008ed88ec08ed08ee08ee8"  # ds, es, ss, fs, gs: 0x10
    "be00010f00fc"  # mov esi, _BASE + _TABLE
    "ad85c07410"  # run: lodsd; jz end
    "89c1ad"  # mov ecx, eax; lodsd
    "8a19"  # page: mov bl, [ecx]
    "81c100100000"  # add ecx, 4096
    "4875f5"  # dec eax; jnz page
    "ebeb"  # jmp run
    "ba02040000b045ee"  # end: out 0x402, 'E'
    "f4ebfd"  # hlt
)
# Marked as accessed: a processor would do so itself, and cannot write to a firmware.
_SEGMENTS = struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
_RESET = bytes.fromhex("ea000000f0")  # jmp 0xf000:0


def runs(size: int, share: float, mean: int = 16, seed: int = 14) -> list[tuple[int, int]]:
    """Return runs of pages (first, number) beyond the first 16 MiB, that share of ``size`` bytes.

    Lengths vary around ``mean``. As many as the firmware has room for: then they are longer.
    """
    generator = random.Random(seed)
    wanted = int(size * share) // PAGE
    mean = max(mean, -(-wanted // (_MOST_RUNS // 2)))
    between = mean * (1 - share) / share
    found: list[tuple[int, int]] = []
    at = (16 << 20) // PAGE
    while len(found) < _MOST_RUNS:
        number = 1 + int(generator.expovariate(1 / mean))
        if at + number > size // PAGE:
            break
        found.append((at, number))
        at += number + 1 + int(generator.expovariate(1 / between))
    return found


def firmware(path: Path, walked: Sequence[tuple[int, int]]) -> Path:
    """Write a firmware that walks these runs of pages."""
    table = b"".join(struct.pack("<II", first * PAGE, number) for first, number in walked)
    return assembled(path, _WALK, table)


def assembled(path: Path, code: bytes, table: bytes = b"") -> Path:
    """Write a firmware that says ``S`` and runs 32-bit code, which has a table at its disposal."""
    content = bytearray(_SIZE)
    parts = {
        0: _REAL,
        _PROTECTED: code,
        _GDT: _SEGMENTS,
        0xA0: struct.pack("<HI", len(_SEGMENTS) - 1, _BASE + _GDT),
        _TABLE: table,
        _SIZE - 16: _RESET,
    }
    for at, part in parts.items():
        content[at : at + len(part)] = part
    path.write_bytes(content)
    return path


def arguments(bios: Path, said: Path) -> list[str]:
    """Return what QEMU's command line has for it; what it writes goes to the file ``said``."""
    device = ["-chardev", f"file,id=said,path={said}", "-device", "isa-debugcon,chardev=said"]
    return ["-bios", str(bios), *device[:-1], f"{device[-1]},iobase=0x402"]


@dataclass
class Walk:
    """When it began and ended, in seconds since it was watched."""

    said: dict[str, float] = field(default_factory=dict)

    def at(self, letter: str, limit: float = 600.0) -> float:
        """Return when the firmware said a letter, having waited for that."""
        until = time.monotonic() + limit
        while letter not in self.said:
            assert time.monotonic() < until, f"the firmware has not said {letter!r}"
            time.sleep(0.001)
        return self.said[letter]


@contextmanager
def watched(path: Path) -> Iterator[Walk]:
    """Watch the file that a firmware writes to, which is removed first."""
    path.unlink(missing_ok=True)
    walk, stop, began = Walk(), threading.Event(), time.monotonic()

    def watch() -> None:
        while not stop.wait(0.001):
            try:
                said = path.read_text()
            except FileNotFoundError:
                continue
            for letter in said:
                walk.said.setdefault(letter, time.monotonic() - began)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield walk
    finally:
        stop.set()
        thread.join()
