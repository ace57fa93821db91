"""Digests as fast as the disk reads, on one processor; proofs by loading, whatever the RAM."""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import cases, guests, measure, moving_cases
from tests.bench.cases import MB, Bench, Row
from tests.bench.guests import NAME
from tests.bench.measure import Run
from tests.kit import cache, tree

_RATE = 0.9  # of the disk's direct read rate
_LARGE = 64  # GiB
_LOAD, _RESIDENT = 0.25, 60 * MB  # seconds until devices are loaded; of the throwaway QEMU


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
    yield from moving_cases.rows(bench, path, name)
    path.unlink()
    yield from _loaded(bench)
    yield from _pages(bench, name, disk)


def _loaded(bench: Bench) -> Iterator[Row]:
    """Yield rows of proofs by loading, of guests whose RAM is sparse."""
    seconds = {}
    for gib in (1, _LARGE):
        path = _saved(bench, gib * guests.GIB)
        run = measure.repeated(
            bench.rounds,
            lambda path=path: cases.run_mapsave(bench.site.config, "prove", str(path), "--json"),
        )
        done = [json.loads(each.output) for each in run.runs]
        seconds[gib] = statistics.median(each["duration_s"] for each in done)
        yield Row(
            f"prove, sparse {gib} GiB guest",
            f"{seconds[gib]:.3f} s",
            target=f"<= {_LOAD} s",
            met=seconds[gib] <= _LOAD,
        )
        taken = max(each["resident_bytes"] for each in done)
        yield Row(
            "    resident memory of its QEMU",
            f"{taken / MB:.0f} MB",
            target=f"<= {_RESIDENT // MB} MB",
            met=taken <= _RESIDENT,
        )
        path.unlink()


def _saved(bench: Bench, size: int) -> Path:
    """Save a guest whose RAM was never touched; return the image."""
    site, path = bench.site, bench.site.image(f"proof-{size}")
    argv = [
        f"{word},reserve=off" if word.startswith("memory-backend-ram,") else word
        for word in guests.command(site, size, None)
    ]
    site.configure(argv)
    process = guests.start(site, argv)
    try:
        cases.run_mapsave(site.config, "save", NAME, "-o", str(path))
    finally:
        process.kill()
        process.wait()
    return path


def _pages(bench: Bench, name: str, disk: float) -> Iterator[Row]:
    """Yield the row of a save that compares all pages; ``disk`` in bytes per second."""
    path = bench.site.image("proof")
    run = measure.repeated(
        bench.rounds, lambda: _save(bench, path, "before", "--prove", "pages", "--json")
    )
    rates = []
    for each in run.runs:
        done = json.loads(each.output)
        rates.append(done["allocated_bytes"] / done["proof"]["compare_s"])
    rate = statistics.median(rates)
    yield Row(
        f"save --prove pages, {name}: comparison; peer: direct reads",
        f"{rate / 10**9:.2f} GB/s",
        f"{disk / 10**9:.2f} GB/s",
        f"{rate / disk:.3f}",
        f">= {_RATE} x peer",
        rate / disk >= _RATE,
    )
    path.unlink()


def _read(way: str, path: Path) -> Run:
    cache.evict(path)
    command = [sys.executable, "-m", "tests.bench.reading", way, str(path)]
    return measure.run(command, tree.ROOT)


def _figures(run: Run) -> tuple[float, float]:
    seconds, busy = map(float, run.output.split())
    return seconds, busy


def _save(bench: Bench, path: Path, digests: str, *options: str) -> Run:
    path.unlink(missing_ok=True)
    argv = guests.command(bench.site, bench.dense, bench.source)
    bench.site.configure(argv)
    process = guests.start(bench.site, argv)
    try:
        return cases.run_mapsave(
            bench.site.config, "save", NAME, "-o", str(path), "--digests", digests, *options
        )
    finally:
        process.kill()
        process.wait()
