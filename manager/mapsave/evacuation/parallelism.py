"""How many saves at once a disk takes, and whether one more would be done in time.

Nothing here knows of guests or clocks: ``Pace`` is shown what was written, and does arithmetic.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

FIRST = 2
# A further slot is worth it if all saves together get faster by this much.
WORTHWHILE = 0.1
# Seconds. QEMU reports its progress four times a second, so shorter ones measure that.
WINDOW = 2.0
STEADY = 1.0
_REMEMBERED = 8


@dataclasses.dataclass(frozen=True)
class Look:
    """One look at the saves: ``written`` bytes by all so far, those that have ended included.

    ``running`` names the saves under way, ``writing`` those whose QEMU is writing just now.
    """

    time: float
    written: int
    running: frozenset[str]
    writing: frozenset[str]

    def rate_since(self, earlier: Look) -> float:
        """Return the bytes per second from ``earlier`` on."""
        return (self.written - earlier.written) / (self.time - earlier.time)


class Pace:
    """The number of ``slots``, from two up to ``most`` while that pays; ``fixed``: just so many."""

    def __init__(self, most: int, fixed: int | None = None) -> None:
        self.slots = fixed or min(FIRST, most)
        self._most = most
        self._settled = fixed is not None
        self._best: float | None = None
        self._full: Look | None = None
        self._steady: Look | None = None
        self._is_first = True
        self._rates: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    @property
    def rate(self) -> float | None:
        """Bytes per second of all saves together, the best of late; None while it is not known.

        Measured only while nothing but writing goes on: small guests spend most of their time on
        other things, and what they make of a disk says nothing of what a large one would.
        """
        return max(self._rates, default=None)

    def note(self, now: Look) -> None:
        """Take in a look at the saves; ``slots`` may change."""
        self._measure(now)
        if self._settled or len(now.running) != self.slots:
            self._full = None  # with fewer guests than slots, the rate says nothing of the slots
        elif self._full is None:
            self._full = now
        elif now.time - self._full.time >= WINDOW:
            self._judge(now.rate_since(self._full))
            self._full = None

    def _measure(self, now: Look) -> None:
        before = self._steady
        if not now.writing or now.writing != now.running:
            self._steady = None
        elif before is None or before.running != now.running:
            self._steady, self._is_first = now, True
        elif now.time - before.time >= STEADY:
            # At first QEMU fills its queues, which is faster than any disk.
            if now.written > before.written and not self._is_first:
                self._rates.append(now.rate_since(before))
            self._steady, self._is_first = now, False

    def _judge(self, rate: float) -> None:
        if self._best is None or rate > self._best * (1 + WORTHWHILE):
            self._best = rate
            self._settled = self.slots == self._most
            self.slots = min(self.slots + 1, self._most)
            return
        # The last one did not pay. It stays where it does no harm: the disk is then busy while one
        # of the others is at something else.
        self._settled = True
        if rate < self._best * (1 - WORTHWHILE):
            self.slots -= 1

    def fits(self, size: int, remaining: Sequence[int], left: float | None) -> bool:
        """Return whether a save of ``size`` bytes that began now would be done in ``left`` seconds.

        ``remaining`` are the bytes that those under way have before them: none of these may miss
        the deadline for its sake. What is not measured yet, fits.
        """
        if left is None:
            return True
        if left <= 0:
            return False
        rate = self.rate
        if rate is None:
            return True
        room = rate * left
        if _shared([*remaining, size], size) > room:
            return False
        return all(
            _shared([*remaining, size], each) <= room or _shared(remaining, each) > room
            for each in remaining
        )


def _shared(sizes: Sequence[int], mine: int) -> int:
    """Return the bytes that are written until ``mine`` of them are, if all get equal shares."""
    return sum(min(each, mine) for each in sizes)
