"""Whether a save is so much slower than predicted that another way to write is worth a restart."""

import collections
import time
from collections.abc import Callable, Sequence

# Seconds over which the pace is judged, at least and at most: storage may take data in bursts.
WINDOW, _LONGEST = 1.0, 4.0
# A save crawls below this part of the predicted pace.
_CRAWLS = 1 / 3
# What a restart must gain: QEMU does not survive every cancel (docs/hazards.md).
_SECONDS_GAINED = 5.0
_TIMES_FASTER = 2.0


class TooSlow(Exception):
    """A save was cancelled for its pace: it would have taken ``seconds`` in all."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"in {seconds} s")
        self.seconds = seconds


class Pace:
    """The pace of one save.

    ``course``: the predicted seconds until each of so many equal parts of the RAM is written;
    ``other``: those that another way takes from the beginning.
    """

    def __init__(
        self, course: Sequence[float], other: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._course = (0.0, *course)
        self._other = other
        self._clock = clock
        self._begun = clock()
        self._seen: collections.deque[tuple[float, float]] = collections.deque()

    def look(self, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` bytes of RAM are written. Raises TooSlow.

        Storage that takes nothing at all hangs, and would not let QEMU end a cancelled save.
        """
        now, at = self._clock(), self._predicted(done / total if total else 0.0)
        self._seen.append((now, at))
        while len(self._seen) > 1 and now - self._seen[1][0] >= _LONGEST:
            self._seen.popleft()
        since, before = self._seen[0]
        elapsed, gained = now - since, at - before
        if elapsed < WINDOW or not 0 < gained < elapsed * _CRAWLS:
            return
        left = (self._course[-1] - at) * elapsed / gained
        if left >= max(self._other + _SECONDS_GAINED, self._other * _TIMES_FASTER):
            raise TooSlow(now - self._begun + left)

    def _predicted(self, part: float) -> float:
        """Return the predicted seconds until this part of the RAM is written."""
        place = min(part, 1.0) * (len(self._course) - 1)
        number = min(int(place), len(self._course) - 2)
        first, second = self._course[number], self._course[number + 1]
        return first + (second - first) * (place - number)
