"""The targets of the matrix."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.cases import Row
from tests.bench.matrix_cells import Cell, Measured

# auto against the best fixed way; what a plan costs counts only where little else does.
_BEST, _BEST_SECONDS = 1.15, 0.03
# Saves against virsh, by the length of the runs in pages; and restores.
_VIRSH = {1: 0.1, 4: 0.16}
_VIRSH_RESTORE = 0.35
_ALONE = 1.05


@dataclass(frozen=True)
class Judged:
    """A target and whether ``what`` meets it; ``phases``: what mapsave's time went to."""

    what: str
    row: Row
    phases: dict[str, float]

    def why(self) -> str:
        """Return the phases in one line."""
        return ", ".join(f"{name} {value:.3f}" for name, value in self.phases.items())


def judged(cell: Cell) -> Iterator[Judged]:
    """Judge a cell, as far as its figures go.

    In memory a small write costs no more than a large one, so virsh has no handicap there.
    """
    for auto in cell.of("auto"):
        if cell.alone:
            for peer in cell.of("bare") + cell.of("disk"):
                yield _against(cell, auto, peer, _ALONE)
            continue
        for best in cell.of("fixed")[:1]:
            yield _against(cell, auto, best, _BEST, _BEST_SECONDS)
        limit = None if cell.in_memory else _VIRSH.get(cell.layout.run_pages)
        for peer in cell.of("virsh") if limit else []:
            yield _against(cell, auto, peer, limit or 0.0)
    if cell.layout.is_fragmented and not cell.in_memory:
        for ours in cell.of("auto", "restore"):
            for theirs in cell.of("virsh", "restore"):
                yield _against(cell, ours, theirs, _VIRSH_RESTORE)


def _against(
    cell: Cell, ours: Measured, theirs: Measured, factor: float, seconds: float = 0.0
) -> Judged:
    ratio = ours.seconds / theirs.seconds
    met = ratio <= factor or (seconds > 0 and ours.seconds <= theirs.seconds + seconds)
    what = f"{cell.layout.name}, {cell.filesystem}: {ours.action}, auto"
    row = Row(
        f"{what} / {theirs.way.name}",
        f"{ours.seconds:.3f} s",
        f"{theirs.seconds:.3f} s",
        f"{ratio:.3f}",
        f"<= {factor} x" + (f" or +{seconds * 1000:.0f} ms" if seconds else ""),
        met,
    )
    return Judged(what, row, ours.phases)
