"""How an operation's progress was over time: few samples, however long it takes."""

from mapsave.history.rows import Sample

MOST = 256


class Course:
    """Samples of one operation's progress, oldest first: at most ``MOST``.

    Where a phase takes long, those within it become fewer; its first and its last one stay.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._apart = 0.0  # seconds, of samples within a phase

    def note(self, new: Sample) -> None:
        """Add a sample, or have it replace the last one, which came too soon after the others."""
        known = self.samples
        if known[-1:] and known[-1][1:] == new[1:]:
            return
        if self._is_within(known[-2:], new):
            known[-1] = new
            return
        known.append(new)
        if len(known) > MOST:
            self._thin()

    def _is_within(self, last: list[Sample], new: Sample) -> bool:
        if len(last) < 2 or {each.phase for each in last} != {new.phase}:
            return False
        return new.time - last[0].time < self._apart

    def _thin(self) -> None:
        """Leave every second sample, and the first and the last of each phase."""
        known = self.samples
        self._apart = 2 * max(self._apart, (known[-1].time - known[0].time) / MOST)
        left = [known[0]]
        for number, (before, each, after) in enumerate(
            zip(known, known[1:], known[2:], strict=False)
        ):
            if number % 2 or before.phase != each.phase or each.phase != after.phase:
                left.append(each)
        left.append(known[-1])
        # Guests of a save-all are phases of their own, and may be thousands.
        self.samples = left if len(left) < MOST else left[::2]
