"""How far a migration is: phases, bytes and rates, and who wants to know."""

import dataclasses
import time
from collections.abc import Callable
from typing import Final

# Phases of an operation that is rolled back.
CANCEL: Final = "cancel"
RESUME: Final = "resume"


@dataclasses.dataclass(frozen=True)
class Progress:
    """One report. Bytes of guest RAM; ``bytes_per_s`` since the start."""

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float = 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present rate; None where that cannot be said."""
        if not self.bytes_per_s or not self.total_bytes:
            return None
        return max(self.total_bytes - self.done_bytes, 0) / self.bytes_per_s

    def as_dict(self) -> dict[str, object]:
        """Return it as the service's API has it."""
        return {**dataclasses.asdict(self), "eta_s": self.eta_s}


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True)
class Seldom:
    """A report that needs to be called only ``every`` so many seconds, and during a rollback."""

    report: Report
    every: float

    def __call__(self, now: Progress) -> None:
        self.report(now)


class Together:
    """How far several operations are together; the ``count`` of them is known beforehand.

    Those that have not begun count as much as the others do on the average.
    """

    def __init__(self, count: int, report: Report) -> None:
        self._count = count
        self._report = report
        self._known: dict[str, Progress] = {}
        self._ended: set[str] = set()
        self._began = time.monotonic()

    def part(self, name: str) -> Report:
        """Return the report of one of them."""

        def report(now: Progress) -> None:
            if now.phase in (CANCEL, RESUME):
                self._report(now)
                return
            if now.total_bytes:
                self._known[name] = now
            self._show()

        return report

    def end(self, name: str) -> None:
        """Note that one of them has ended, however that was."""
        if (last := self._known.get(name)) is not None:
            self._known[name] = dataclasses.replace(last, done_bytes=last.total_bytes)
        self._ended.add(name)
        self._show()

    def _show(self) -> None:
        known = self._known.values()
        total = sum(each.total_bytes for each in known)
        if known:
            waiting = self._count - len(self._known.keys() | self._ended)
            total += total * waiting // len(known)
        done = min(sum(each.done_bytes for each in known), total)
        elapsed = time.monotonic() - self._began
        phase = f"{len(self._ended)} of {self._count} guests"
        self._report(Progress(phase, done, total, done / elapsed if elapsed else 0.0))


class Phases:
    """Seconds spent in each phase of an operation, in the order they began."""

    def __init__(self, report: Report = silent) -> None:
        self._report = report
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = time.monotonic()
        self.started = self._since

    def enter(self, phase: str) -> None:
        """Begin ``phase``; the one before it ends now."""
        self._leave()
        self._phase = phase
        self._report(Progress(phase))

    def _leave(self) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now

    def progress(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes are written."""
        elapsed = time.monotonic() - self._since
        self._report(Progress(self._phase or "", done, total, done / elapsed if elapsed else 0.0))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, to the microsecond."""
        self._leave()
        return {phase: round(seconds, 6) for phase, seconds in self._seconds.items()}

    @property
    def total(self) -> float:
        """Seconds since the operation began."""
        return time.monotonic() - self.started
