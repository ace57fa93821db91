"""Contents for guest RAM: reproducible, fast, and shaped like what a save meets.

Each pattern is a function ``(size in bytes, seed) -> array of bytes``. The same arguments give the
same bytes, whatever the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PAGE = 4096
MIB = 1 << 20
_CHUNK = 64 * MIB

# RAM sizes of ``-machine none`` whose page bitmap does not fill its last 64-bit word.
ODD_SIZES = ("8K", "520K", "33000K", "49160K")


class Pattern(Protocol):
    """What fills RAM."""

    def __call__(self, size: int, /, seed: int = 1) -> NDArray[np.uint8]: ...


def dense(size: int, /, seed: int = 1) -> NDArray[np.uint8]:
    """Return random bytes: no page is zero, nothing compresses."""
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype=np.uint8)


def empty(size: int, /, seed: int = 1) -> NDArray[np.uint8]:
    """Return zeros."""
    return np.zeros(size, dtype=np.uint8)


def sparse(size: int, /, seed: int = 1) -> NDArray[np.uint8]:
    """Return mostly zeros: random pages at about every 64th place, in no order."""
    generator = np.random.default_rng(seed)
    content = np.zeros(size, dtype=np.uint8)
    pages = content[: size // PAGE * PAGE].reshape(-1, PAGE)
    used = generator.random(len(pages)) < 1 / 64
    pages[used] = np.frombuffer(generator.bytes(int(used.sum()) * PAGE), np.uint8).reshape(-1, PAGE)
    return content


def fragmented(run_pages: int = 1) -> Pattern:
    """Return the pattern of alternating runs, ``run_pages`` random pages and as many zero ones."""

    def pattern(size: int, /, seed: int = 1) -> NDArray[np.uint8]:
        pages = dense(-(-size // PAGE) * PAGE, seed).copy().reshape(-1, PAGE)
        pages[(np.arange(len(pages)) // run_pages) % 2 == 1] = 0
        return pages.reshape(-1)[:size]

    return pattern


def single_bytes(size: int, /, seed: int = 1) -> NDArray[np.uint8]:
    """Return pages of zeros with one byte each, anywhere in it: a trap for zero detection."""
    generator = np.random.default_rng(seed)
    content = np.zeros(size, dtype=np.uint8)
    starts = np.arange(0, size, PAGE)
    places = starts + generator.integers(0, PAGE, len(starts))
    content[np.minimum(places, size - 1)] = generator.integers(1, 256, len(starts), dtype=np.uint8)
    return content


def write(path: Path, size: int, pattern: Pattern = dense, seed: int = 1) -> Path:
    """Fill the file at ``path`` with ``size`` bytes, 64 MiB at a time; return ``path``.

    Chunks that are zero become holes.
    """
    with path.open("wb") as file:
        file.truncate(size)
        for number, start in enumerate(range(0, size, _CHUNK)):
            content = pattern(min(_CHUNK, size - start), seed=seed + number)
            if content.any():
                file.seek(start)
                file.write(content.data)
    return path
