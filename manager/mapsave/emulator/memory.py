"""The guest's RAM: a memfd, its contents, its dirty log, and a thread that plays the guest."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from mapsave.emulator.options import PAGE, EmulatorOptions

Bits = npt.NDArray[np.bool_]
WORDS = PAGE // 8  # 64-bit words in a page
_FILL_PAGES = 4096  # pages filled at a time: 16 MiB of random bytes in flight
_WRITER_PAUSE = 0.001  # seconds between two bursts of the writer
_WRITER_BURST = 8  # pages it dirties in a burst: about 25 MiB/s


class GuestMemory:
    """RAM of ``options.memory`` bytes, filled by ``options.pattern`` or, before a restore, zero."""

    def __init__(self, options: EmulatorOptions) -> None:
        self.size = options.memory
        self.pages = options.memory // PAGE
        self._fd = os.memfd_create("mapsave-emulator-ram")
        os.ftruncate(self._fd, self.size)
        self._map = mmap.mmap(self._fd, self.size)
        self.view = memoryview(self._map)
        self.words = np.frombuffer(self._map, dtype=np.uint64).reshape(self.pages, WORDS)
        self._dirty: Bits = np.zeros(self.pages, dtype=np.bool_)
        self._gate = threading.Lock()
        self._running = False
        self._wake = threading.Event()
        if options.incoming is None or options.stale:
            fill(self.words, options.pattern, options.seed)
        if options.writer:
            threading.Thread(
                target=self._write_forever, args=(options.seed,), name="writer", daemon=True
            ).start()

    @property
    def address(self) -> int:
        """Where the RAM is in this process, for ``x-query-ramblock``."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def resume(self) -> None:
        """Let the guest run: the writer may write."""
        with self._gate:
            self._running = True
        self._wake.set()

    def halt(self) -> None:
        """Stop the guest: when this returns no page changes any more."""
        self._wake.clear()
        with self._gate:
            self._running = False

    def collect_dirty(self, into: Bits) -> int:
        """Move the dirty log into ``into``; return how many bits that added."""
        with self._gate:
            before = int(np.count_nonzero(into))
            into |= self._dirty
            self._dirty[:] = False
            return int(np.count_nonzero(into)) - before

    def _write_forever(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        while True:
            self._wake.wait()
            touched = rng.integers(0, self.pages, _WRITER_BURST)
            with self._gate:
                if self._running:
                    self.words[touched, 0] += np.uint64(1)
                    self._dirty[touched] = True
            threading.Event().wait(_WRITER_PAUSE)


def fill(words: npt.NDArray[Any], pattern: str, seed: int) -> None:
    """Fill RAM, one row of ``words`` a page, with ``pattern``: the same for the same seed."""
    rng = np.random.Generator(np.random.SFC64(seed))
    used = used_pages(pattern, len(words), rng)
    for start in range(0, len(words), _FILL_PAGES):
        chosen = used[start : start + _FILL_PAGES]
        count = int(np.count_nonzero(chosen))
        if count:
            data = rng.integers(1, 1 << 64, size=(count, WORDS), dtype=np.uint64)
            words[start : start + _FILL_PAGES][chosen] = data


def used_pages(pattern: str, pages: int, rng: np.random.Generator) -> Bits:
    """Return which of ``pages`` pages are not zero.

    ``sparse`` has a sixteenth in runs of 256 pages, ``fragmented`` every second page by chance;
    ``linux`` is a booted guest's: kernel at the bottom, then runs of all lengths, 40 % in all.
    """
    if pattern == "zero":
        return np.zeros(pages, dtype=np.bool_)
    if pattern == "random":
        return np.ones(pages, dtype=np.bool_)
    if pattern == "fragmented":
        return np.asarray(rng.random(pages) < 0.5)
    if pattern == "sparse":
        runs = np.asarray(rng.random(-(-pages // 256)) < 1 / 16)
        runs[0] = True
        return np.repeat(runs, 256)[:pages]
    return _linux_pages(pages, rng)


def _linux_pages(pages: int, rng: np.random.Generator) -> Bits:
    used = np.zeros(pages, dtype=np.bool_)
    used[: pages // 32] = True
    at = pages // 32
    while at < pages:
        free, taken = rng.geometric(1 / 96), rng.geometric(1 / 64)
        used[at + free : at + free + taken] = True
        at += int(free + taken)
    return used
