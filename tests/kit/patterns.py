"""Contents for guest RAM: reproducible, fast, and shaped like what a save meets.

Each pattern is a function ``(size in bytes, seed) -> bytearray``. The same arguments give the same
bytes, whatever the machine.
"""

import random
import struct
from pathlib import Path
from typing import Protocol

PAGE = 4096
MIB = 1 << 20
_CHUNK = 64 * MIB
_RANDOM = 4 * MIB  # bytes that ``dense`` repeats, each page with its number
_NUMBER = struct.Struct("<Q")

# RAM sizes of ``-machine none`` whose page bitmap does not fill its last 64-bit word.
ODD_SIZES = ("8K", "520K", "33000K", "49160K")


class Pattern(Protocol):
    """What fills RAM."""

    def __call__(self, size: int, /, seed: int = 1) -> bytearray: ...


def dense(size: int, /, seed: int = 1) -> bytearray:
    """Return random bytes: no page is zero or like another one, nothing in a page compresses."""
    contents = random.Random(seed).randbytes(min(size, _RANDOM))
    content = bytearray((contents * -(-size // _RANDOM))[:size])
    for at in range(_RANDOM, size - PAGE + 1, PAGE):
        _NUMBER.pack_into(content, at, at)
    return content


def empty(size: int, /, seed: int = 1) -> bytearray:
    return bytearray(size)


def sparse(size: int, /, seed: int = 1) -> bytearray:
    """Return mostly zeros: random pages at about every 64th place, in no order."""
    generator = random.Random(seed)
    content = bytearray(size)
    for at in range(0, size // PAGE * PAGE, PAGE):
        if generator.random() < 1 / 64:
            content[at : at + PAGE] = generator.randbytes(PAGE)
    return content


def fragmented(run_pages: int = 1) -> Pattern:
    """Return the pattern of alternating runs, ``run_pages`` random pages and as many zero ones."""
    return islands(run_pages, run_pages)


def islands(used: int, zero: int) -> Pattern:
    """Return the pattern of runs of ``used`` random pages, with ``zero`` pages of zeros between."""

    def pattern(size: int, /, seed: int = 1) -> bytearray:
        content = dense(size, seed)
        for at in range(used * PAGE, size, (used + zero) * PAGE):
            length = min(zero * PAGE, size - at)
            content[at : at + length] = bytes(length)
        return content

    return pattern


def zero_tails(size: int, /, seed: int = 1) -> bytearray:
    """Return pages that end in zeros, so that a page alone does not show whether it is whole."""
    content = dense(size, seed)
    for end in range(PAGE, size + 1, PAGE):
        content[end - 16 : end] = bytes(16)
    return content


def single_bytes(size: int, /, seed: int = 1) -> bytearray:
    """Return pages of zeros with one byte each, anywhere in it: a trap for zero detection."""
    generator = random.Random(seed)
    content = bytearray(size)
    for at in range(0, size, PAGE):
        content[min(at + generator.randrange(PAGE), size - 1)] = generator.randrange(1, 256)
    return content


def write(path: Path, size: int, pattern: Pattern = dense, seed: int = 1) -> Path:
    """Fill the file at ``path`` with ``size`` bytes, 64 MiB at a time; return ``path``.

    Chunks that are zero become holes.
    """
    with path.open("wb") as file:
        file.truncate(size)
        for number, start in enumerate(range(0, size, _CHUNK)):
            content = pattern(min(_CHUNK, size - start), seed=seed + number)
            if content != bytes(len(content)):
                file.seek(start)
                file.write(content)
    return path
