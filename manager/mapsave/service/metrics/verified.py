"""How many images of the image directory were verified, and with which outcome."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from mapsave.operations import verified_notes
from mapsave.operations.verified_notes import Note, Outcome

NEVER = "never"


@dataclasses.dataclass(frozen=True)
class Verified:
    """Images by outcome of their last look, or ``NEVER``, and the time of the ``oldest`` look that
    found an image good: None where there is none."""

    counts: Mapping[str, int]
    oldest: float | None


class VerifiedImages:
    """Reads the notes about images; one is read again only when it has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], Note | None]] = {}

    def look(self, state: Path, keys: Iterable[str]) -> Verified:
        """Return what the notes say of the images of these keys. Blocks; never raises."""
        known: dict[str, tuple[tuple[int, int], Note | None]] = {}
        try:
            with os.scandir(verified_notes.directory(state)) as files:
                for file in files:
                    try:
                        stats = file.stat()
                    except OSError:  # replaced while we looked
                        continue
                    mark = (stats.st_ino, stats.st_mtime_ns)
                    was = self._known.get(file.name)
                    if was is None or was[0] != mark:
                        was = (mark, verified_notes.read(state, file.name))
                    known[file.name] = was
        except OSError:
            pass  # there are none yet, or they cannot be read: those who scrub say so
        self._known = known
        counts = Counter({outcome.value: 0 for outcome in Outcome} | {NEVER: 0})
        times: list[float] = []
        for key in keys:
            _, note = known.get(key, (None, None))
            counts[note.outcome.value if note is not None and note.outcome else NEVER] += 1
            if note is not None and note.outcome is Outcome.VERIFIED:
                times.append(note.time)
        return Verified(counts, min(times, default=None))
