"""After a boot the guests that save-all saved come back first: until then no job begins.

A run that was missed while the host was down would find none of its guests, and delay
restore-all.
"""

import time
from collections.abc import Callable
from pathlib import Path

from mapsave import errors, units
from mapsave.evacuation import record

# Seconds. A record that no restore-all works on keeps no job from running for longer.
LIMIT = 600.0


class RestoreFirst:
    """Whether jobs wait for the record in ``state``; ``clock`` is in seconds."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        self._since: float | None = None

    def reason(self) -> str | None:
        """Return why no job may begin yet; None where they may. Blocks."""
        if not self._is_waiting():
            self._since = None
            return None
        now = self._clock()
        if self._since is None:
            self._since = now
        if now - self._since >= LIMIT:
            return None
        return (
            "'mapsave restore-all' has not restored all guests that save-all saved; waiting at "
            f"most {units.format_duration(LIMIT)}"
        )

    def _is_waiting(self) -> bool:
        try:
            entries = record.load(self._state).entries
        except errors.MapsaveError:
            return False  # restore-all cannot read it either
        return any(entry.has_image() for entry in entries)
