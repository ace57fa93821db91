"""A cell of the matrix: one layout on one file system, saved by every way and restored."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench import cases, measure
from tests.bench.matrix_layouts import Content, Layout
from tests.bench.matrix_ways import AUTO, BARE, DISK, VIRSH, Place, Subject, Way
from tests.bench.measure import Run, Series


@dataclass(frozen=True)
class Measured:
    """All runs of one way: ``action`` is save or restore, ``allocated`` bytes on the disk."""

    action: str
    way: Way
    series: Series
    allocated: int

    @property
    def seconds(self) -> float:
        """The median."""
        return self.series.seconds

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase of mapsave in the run next to the median; none of others."""
        if self.way.kind not in ("auto", "fixed"):
            return {}
        typical = min(self.series.runs, key=lambda run: abs(run.seconds - self.seconds))
        found: dict[str, float] = cases.result(typical)["phases_s"]
        return {**found, "python": typical.seconds - sum(found.values())}


@dataclass
class Cell:
    """What was measured of a layout on a file system, and which ways ``failed``."""

    layout: Layout
    filesystem: str
    in_memory: bool
    ram_bytes: int
    alone: bool = False  # the dense guest that is compared with bare script and disk
    measured: list[Measured] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def of(self, kind: str, action: str = "save") -> list[Measured]:
        """Return what was measured of a kind of way, the fastest first."""
        found = [each for each in self.measured if (each.action, each.way.kind) == (action, kind)]
        return sorted(found, key=lambda each: each.seconds)

    def ratio(self, measured: Measured) -> float:
        """Return how many times as long it took as the best of the same action."""
        return measured.seconds / min(
            each.seconds for each in self.measured if each.action == measured.action
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the lines of the table."""
        return [
            (
                self.layout.name,
                self.filesystem,
                f"{each.action}, {each.way.name}",
                f"{each.seconds:.3f} s",
                f"{self.ratio(each):.2f}",
                f"{each.allocated / 1e6:.1f} MB",
            )
            for each in self.measured
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "layout": self.layout.name,
            "filesystem": self.filesystem,
            "ram_bytes": self.ram_bytes,
            "measurements": [
                {
                    "action": each.action,
                    "name": each.way.name,
                    "kind": each.way.kind,
                    "seconds": [round(run.seconds, 4) for run in each.series.runs],
                    "median_seconds": round(each.seconds, 4),
                    "ratio": round(self.ratio(each), 4),
                    "allocated_bytes": each.allocated,
                    "phases": {name: round(value, 4) for name, value in each.phases.items()},
                }
                for each in self.measured
            ],
            "failed": self.failed,
        }


def measured(place: Place, content: Content, fixed: Sequence[Way], rounds: int) -> Cell:
    """Measure all ways to save and to restore a content."""
    cell = Cell(content.layout, place.filesystem, place.in_memory, content.size)
    subject = Subject(place, content)
    peers = [BARE, VIRSH] if place.daemon else [BARE]
    both = (AUTO, VIRSH)
    try:
        _measure(cell, subject, "save", [*fixed, AUTO, *(peers if place.direct_io else [])], rounds)
        kept = [each.way for each in cell.measured if each.way in both]
        _measure(cell, subject, "restore", kept, rounds)
    finally:
        subject.forget()
    return cell


def alone(place: Place, content: Content, rounds: int) -> Cell:
    """Measure a dense guest against the bare script and against the disk."""
    cell = Cell(content.layout, place.filesystem, place.in_memory, content.size, alone=True)
    subject = Subject(place, content)
    try:
        first = subject.saved(AUTO)
        subject.channels = cases.result(first)["strategy"]["channels"]
        _measure(cell, subject, "save", [BARE, DISK, AUTO], rounds)
    finally:
        subject.forget()
    return cell


def _measure(cell: Cell, subject: Subject, action: str, ways: Sequence[Way], rounds: int) -> None:
    """Let all ways have their turn in each round; one that fails has none any more."""
    function: Callable[[Way], Run] = subject.saved if action == "save" else subject.restored
    known = {way.name: way for way in ways}
    failed: dict[str, str] = {}
    functions = {name: functools.partial(function, way) for name, way in known.items()}
    for name, series in measure.in_turn(rounds, functions, failed).items():
        way = known[name]
        cell.measured.append(Measured(action, way, series, subject.allocated[way]))
    cell.failed += [f"{action}, {name}: {error[-400:]}" for name, error in failed.items()]
