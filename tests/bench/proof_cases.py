"""Digests of an image's data: as fast as its disk reads, on one processor."""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import cases, guests, measure
from tests.bench.cases import Bench, Row
from tests.bench.guests import NAME
from tests.bench.measure import Run
from tests.kit import tree

_RATE = 0.9  # of the disk's direct read rate


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows, of a dense image."""
    name = f"dense {bench.dense / guests.GIB:g} GiB guest"
    path = bench.site.image("proof")
    ways = {way: lambda way=way: _save(bench, path, way) for way in ("after", "before")}
    series = measure.in_turn(bench.rounds, ways)
    yield cases.compared(
        f"save, {name}, digests before; peer: after", series["before"], series["after"], None
    )
    ways = {way: lambda way=way: _read(way, path) for way in ("one", "four", "digests")}
    series = measure.in_turn(bench.rounds, ways)
    rates = {
        way: path.stat().st_blocks * 512 / statistics.median(_figures(run)[0] for run in each.runs)
        for way, each in series.items()
    }
    disk = max(rates["one"], rates["four"])
    ratio = rates["digests"] / disk
    yield Row(
        f"digests, {name}; peer: direct reads",
        *(f"{rate / 10**9:.2f} GB/s" for rate in (rates["digests"], disk)),
        f"{ratio:.3f}",
        f">= {_RATE} x peer",
        ratio >= _RATE,
    )
    busy = statistics.median(_figures(run)[1] for run in series["digests"].runs)
    yield Row("    seconds of the processor, of them", f"{busy:.3f} s")
    verifying = measure.repeated(
        bench.rounds,
        lambda: cases.run_mapsave(bench.site.config, "verify", str(path), "--add-digests"),
    )
    yield Row(f"verify --data, {name}", f"{verifying.seconds:.3f} s")
    path.unlink()


def _read(way: str, path: Path) -> Run:
    guests.evict(path)
    command = [sys.executable, "-m", "tests.bench.reading", way, str(path)]
    return measure.run(command, tree.ROOT)


def _figures(run: Run) -> tuple[float, float]:
    seconds, busy = map(float, run.output.split())
    return seconds, busy


def _save(bench: Bench, path: Path, digests: str) -> Run:
    path.unlink(missing_ok=True)
    argv = guests.command(bench.site, bench.dense, bench.source)
    bench.site.configure(argv)
    process = guests.start(bench.site, argv)
    try:
        return cases.run_mapsave(
            bench.site.config, "save", NAME, "-o", str(path), "--digests", digests
        )
    finally:
        process.kill()
        process.wait()
