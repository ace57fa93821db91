"""Instant restores: RAM that is mapped from the image, against the same image read."""

import contextlib
import json
import os
import select
import shutil
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench import cases, guests, measure, walker
from tests.bench.cases import MB, Bench, Row
from tests.bench.guests import NAME, Site
from tests.bench.measure import Run
from tests.kit import cache, cli, service

_COMMAND, _SERVICE = 0.35, 0.2  # seconds from the command's start until the guest is loaded
_RESIDENT = 60 * MB  # of QEMU, before its guest runs
_WALKED = 0.1  # of its memory
_COUNT, _OF = 25, 2  # clones of an image, and its GiB
_ALL, _BUSY = 2.0, 0.2  # seconds until all run; of a processor for each
_SHARE = 0.1  # of RAM, beyond what is shared
_LARGE, _FACTOR = 64, 1.2  # GiB, and how much longer than of 1 GiB it may take


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows; the images are dense, and cold, but for those of sparse guests."""
    site = bench.site
    name = f"dense {bench.dense / guests.GIB:g} GiB guest, cold"
    path = _saved(bench, bench.dense, bench.source)
    taken: dict[str, int] = {}
    ways = {way: _restorer(site, path, way, taken) for way in ("on", "off")}
    series = measure.in_turn(bench.rounds, ways)
    yield cases.limited(
        f"restore, {name}; by the command", series["on"].seconds, _COMMAND, series["off"]
    )
    shown = f"{taken['on'] / MB:.0f} MB"
    met = taken["on"] <= _RESIDENT
    yield Row(
        "    resident memory of QEMU before the guest runs",
        shown,
        f"{taken['off'] / MB:.0f} MB",
        target=f"<= {_RESIDENT // MB} MB",
        met=met,
    )
    yield from _by_service(bench, path, name)
    path.unlink()
    yield from _walked(bench, name)
    yield from _sparse(bench)
    yield from _clones(bench)


def _saved(bench: Bench, size: int, source: Path | None, walker: Sequence[str] = ()) -> Path:
    """Save a guest of ``size`` bytes; the site knows how to start it again. Return the image.

    ``walker`` are arguments for a firmware that TCG is to run.
    """
    site = bench.site
    path = site.image(f"instant-{size}")

    def command(content: Path | None) -> list[str]:
        return [*guests.command(site, size, content, accelerated=not walker), *walker]

    # Else a guest that is larger than the memory of this host could not be saved.
    argv = [
        f"{word},reserve=off" if word.startswith("memory-backend-ram,") else word
        for word in command(None)
    ]
    site.configure(argv)
    process = guests.start(site, command(source) if source else argv)
    try:
        cases.run_mapsave(site.config, "save", NAME, "-o", str(path))
    finally:
        process.kill()
        process.wait()
    return path


def _restorer(site: Site, path: Path, way: str, taken: dict[str, int]) -> Callable[[], Run]:
    """Return what restores an image cold, one way, and notes the memory of its QEMU."""

    def restored() -> Run:
        cache.evict(path)
        try:
            words = ("restore", str(path), "--again", "--paused", "--instant", way)
            found = cases.run_mapsave(site.config, *words)
            done = cases.result(found)
            assert done["instant"] is (way == "on"), done["reasons"]
            taken[way] = max(taken.get(way, 0), _resident(done["pid"]))
            return found
        finally:
            guests.end_listener(site)

    return restored


def _resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def _serving(site: Site, **more: object) -> Iterator[tuple[cli.Site, service.Service]]:
    """Run a service that has the images and the guest of the site; ``more`` are keys of that."""
    place = cli.Site(site.directory / "instant-service")
    place.guests = json.loads(site.config.read_text())["guests"]
    place.guests[NAME] |= more
    place.settings["images"] = str(site.images)
    place.write()
    try:
        with service.running(place) as running:
            yield place, running
    finally:
        shutil.rmtree(place.directory)


def _walked(bench: Bench, name: str) -> Iterator[Row]:
    """Restore a guest that walks a tenth of its memory, which was recorded as its working set."""
    site = bench.site
    said = site.directory / "said"
    walked = walker.runs(bench.dense, _WALKED)
    bios = walker.firmware(site.directory / "walker.bin", walked)
    path = _saved(bench, bench.dense, bench.source, walker.arguments(bios, said))
    ways = {
        "on demand": ("--instant", "on", "--warm", "none"),
        "warm": ("--instant", "on", "--warm", "working-set"),
        "eager": ("--instant", "off"),
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}

    def restorer(way: str, *, learns: bool = False) -> Callable[[], Run]:
        def restored() -> Run:
            cache.evict(path)
            try:
                with walker.watched(said) as walk:
                    words = ("restore", str(path), "--again", "--run", *ways[way])
                    found = cases.run_mapsave(site.config, *words)
                    times[way].append((walk.at("S"), walk.at("E")))
                if learns:
                    cases.run_mapsave(site.config, "warm", str(path), "--learn")
                return found
            finally:
                guests.end_listener(site)

        return restored

    restorer("on demand", learns=True)()
    times["on demand"].clear()
    measure.in_turn(bench.rounds, {way: restorer(way) for way in ways})
    path.unlink()
    first, last = (
        {way: statistics.median(each[at] for each in found) for way, found in times.items()}
        for at in (0, 1)
    )
    size = sum(number for _, number in walked) * walker.PAGE
    where = f"{name} that walks {size / MB:.0f} MB in {len(walked)} runs"
    yield Row(f"first instruction, {where}", f"{first['warm']:.3f} s", f"{first['eager']:.3f} s")
    for peer, limit in (("on demand", 0.5), ("eager", 1.0)):
        ratio = last["warm"] / last[peer]
        yield Row(
            f"    end of the walk, against {peer}",
            f"{last['warm']:.3f} s",
            f"{last[peer]:.3f} s",
            f"{ratio:.3f}",
            f"<= {limit} x",
            ratio <= limit,
        )


def _by_service(bench: Bench, path: Path, name: str) -> Iterator[Row]:
    site = bench.site
    with _serving(site) as (place, _):

        def restored() -> Run:
            cache.evict(path)
            try:
                words = ("restore", path.name, "--again", "--paused", "--instant", "on")
                return cases.run_mapsave(place.config, *words)
            finally:
                guests.end_listener(site)

        series = measure.repeated(bench.rounds, restored)
    yield cases.limited(f"restore, {name}; through the service", series.seconds, _SERVICE)


def _clones(bench: Bench) -> Iterator[Row]:
    """Start clones of a dense image at once; the figures are of the worst round."""
    site, size = bench.site, min(_OF * guests.GIB, bench.dense)
    path = _saved(bench, size, bench.source)
    own = guests.command(site, size)
    argv = [word.replace(str(site.socket), f"{site.socket}.{{n}}") for word in own]
    template = {"qmp": f"{site.socket}.{{n}}", "launch": argv}
    busy: list[float] = []
    shares: list[float] = []
    with _serving(site, clone=template) as (place, running):

        def cloned() -> Run:
            cache.evict(path)
            before = _processor(running.process.pid)
            words = ("clone", path.name, "--paused", "--count", str(_COUNT))
            found = cases.run_mapsave(place.config, *words)
            done = cases.result(found)["clones"]
            pids = [each["result"]["pid"] for each in done if each["result"]]
            try:
                assert len(pids) == _COUNT, done
                taken = _processor(running.process.pid) - before + found.busy
                busy.append((taken + sum(map(_processor, pids))) / _COUNT)
                shares.append(sum(map(_proportional, pids)) / _COUNT / size)
                return found
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                for pid in pids:
                    _await_end(pid)

        series = measure.repeated(bench.rounds, cloned)
    path.unlink()
    name = f"{_COUNT} clones of a dense {size / guests.GIB:g} GiB image"
    slowest = max(each.seconds for each in series.runs)
    yield cases.limited(f"clone, {name}; all run", slowest, _ALL)
    yield cases.limited("    processor time of each", max(busy), _BUSY)
    share = max(shares)
    yield Row(
        "    proportional set size of each, of its RAM",
        f"{share:.1%}",
        target=f"<= {_SHARE:.0%}",
        met=share <= _SHARE,
    )


def _processor(pid: int) -> float:
    """Return the seconds of the processor that a process has taken."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _proportional(pid: int) -> int:
    """Return the bytes of a process in memory, pages that it shares by its part of them."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        (line,) = (line for line in file if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def _await_end(pid: int) -> None:
    """Wait until a process that was killed is gone, or left to whoever started it."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            select.select([handle], [], [], 30)
        finally:
            os.close(handle)


def _sparse(bench: Bench) -> Iterator[Row]:
    """Restore guests of 1 GiB and 64 GiB that have hardly any contents."""
    site, found = bench.site, {}
    for size in (1, _LARGE):
        path = _saved(bench, size * guests.GIB, None)
        found[size] = measure.repeated(bench.rounds, _restorer(site, path, "on", {}))
        path.unlink()
    small, large = found[1], found[_LARGE]
    ratio = large.seconds / small.seconds
    yield Row(
        f"restore, sparse {_LARGE} GiB guest, against one of 1 GiB",
        f"{large.seconds:.3f} s",
        f"{small.seconds:.3f} s",
        f"{ratio:.3f}",
        f"<= {_FACTOR} x",
        ratio <= _FACTOR,
    )
