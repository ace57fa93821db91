"""What is measured. Each case yields the rows of the table that it is good for."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import guests, measure
from tests.bench.guests import Site
from tests.bench.measure import Run, Series
from tests.kit import tree

BARE = [sys.executable, str(Path(__file__).with_name("bare.py"))]
MB = 10**6
PEAK = 100 * MB
_FACTOR = 1.05
_WORDS = {True: "yes", False: "NO", None: ""}


@dataclass(frozen=True)
class Row:
    """A line of the table; ``met`` is None where there is no target."""

    what: str
    mapsave: str
    peer: str = ""
    ratio: str = ""
    target: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the line's texts."""
        shown = (self.what, self.mapsave, self.peer, self.ratio, self.target)
        return (*shown, _WORDS[self.met])


@dataclass(frozen=True)
class Bench:
    """How much is measured: the dense guest's bytes, and how often."""

    site: Site
    dense: int
    rounds: int

    @property
    def source(self) -> Path:
        """A file of random bytes, as many as the dense guest has RAM; made when first needed."""
        path = self.site.directory / "content"
        if not path.exists():
            guests.fill(path, self.dense)
        return path


def compared(what: str, ours: Series, theirs: Series, factor: float | None = _FACTOR) -> Row:
    """Return the row of two series; without a ``factor`` there is no target."""
    ratio = round(ours.seconds / theirs.seconds, 3)  # as it is shown
    shown = (f"{ours.seconds:.3f} s", f"{theirs.seconds:.3f} s", f"{ratio:.3f}")
    if factor is None:
        return Row(what, *shown)
    return Row(what, *shown, f"<= {factor} x peer", ratio <= factor)


def limited(what: str, seconds: float, limit: float, peer: Series | None = None) -> Row:
    """Return the row of a time that has a limit of its own."""
    other = f"{peer.seconds:.3f} s" if peer else ""
    return Row(what, f"{seconds:.3f} s", other, "", f"<= {limit} s", seconds <= limit)


def peak(what: str, series: Series, limit: int = PEAK) -> Row:
    shown = f"{series.peak / MB:.0f} MB"
    return Row(f"peak memory, {what}", shown, "", "", f"<= {limit // MB} MB", series.peak <= limit)


def help_(bench: Bench) -> Iterator[Row]:
    """``mapsave --help``."""
    command = [*measure.MAPSAVE, "--help"]
    series = measure.repeated(4 * bench.rounds + 1, lambda: measure.run(command, tree.ROOT))
    yield limited("mapsave --help", series.seconds, 0.15)


def idle(bench: Bench) -> Iterator[Row]:
    """Save of a guest with 1 GiB of RAM, nearly all zero."""
    ours, theirs = _saves(bench, guests.GIB, None, 2 * bench.rounds + 1)
    yield limited("save, idle 1 GiB guest", ours.seconds, 0.35, theirs)
    yield peak("save of it", ours)


def dense(bench: Bench) -> Iterator[Row]:
    """Save of a guest whose RAM is random."""
    name = f"dense {bench.dense / guests.GIB:g} GiB guest"
    ours, theirs = _saves(bench, bench.dense, bench.source, bench.rounds)
    yield compared(f"save, {name}", ours, theirs)
    yield peak("save of it", ours)


def _saves(bench: Bench, size: int, source: Path | None, rounds: int) -> tuple[Series, Series]:
    """Save by mapsave and by the peer, both with the channels that mapsave chooses."""
    site = bench.site
    argv = guests.command(site, size, source)
    site.configure(guests.command(site, size))
    chosen: list[int] = []

    def saved(function: Callable[[], Run]) -> Run:
        process = guests.start(site, argv)
        try:
            return function()
        finally:
            process.kill()
            process.wait()

    def ours() -> Run:
        path = str(site.image("mapsave"))
        found = saved(lambda: run_mapsave(site.config, "save", guests.NAME, "-o", path))
        strategy = json.loads(found.output)["strategy"]
        assert strategy["direct_io"], "mapsave did not use direct-io, as the peer does"
        chosen.append(strategy["channels"])
        return found

    def peer() -> Run:
        words = ["save", str(site.socket), str(site.image("bare")), str(chosen[-1])]
        return saved(lambda: measure.run([*BARE, *words], tree.ROOT))

    ours()  # warms the caches, and tells how many channels
    return measure.alternating(rounds, ours, peer)


def restore(bench: Bench) -> Iterator[Row]:
    """Restore of the dense guest, the start of QEMU included."""
    site = bench.site
    launch = guests.command(site, bench.dense)
    path = str(site.image("restored"))
    site.configure(launch)
    process = guests.start(site, guests.command(site, bench.dense, bench.source))
    try:
        saved = json.loads(run_mapsave(site.config, "save", guests.NAME, "-o", path).output)
    finally:
        process.kill()
        process.wait()
    channels = str(saved["strategy"]["channels"])

    def restored(function: Callable[[], Run]) -> Run:
        try:
            return function()
        finally:
            guests.end_listener(site)

    def ours() -> Run:
        words = ("restore", path, "--again", "--instant", "off", "--channels", channels)
        return restored(lambda: run_mapsave(site.config, *words))

    def peer() -> Run:
        words = ["restore", str(site.socket), path, channels, *launch]
        return restored(lambda: measure.run([*BARE, *words], tree.ROOT))

    ours()
    mapsave, bare = measure.alternating(bench.rounds, ours, peer)
    yield compared(f"restore, dense {bench.dense / guests.GIB:g} GiB guest", mapsave, bare)
    yield peak("restore of it", mapsave)


def inspect(bench: Bench) -> Iterator[Row]:
    """``mapsave inspect`` of images of 1 TiB: a sparse one, and the worst there is."""
    site = bench.site
    site.configure(guests.command(site, guests.GIB))
    for pattern, kind in (("sparse", "sparse"), ("alternating", "every other page used")):
        path = str(site.image(pattern))
        make = [sys.executable, "-m", "tests.bench.huge", path, pattern]
        subprocess.run(make, cwd=tree.ROOT, check=True)

        def look(path: str = path) -> Run:
            return run_mapsave(site.config, "inspect", path)

        series = measure.repeated(bench.rounds, look)
        yield limited(f"inspect, 1 TiB image, {kind}", series.seconds, 1.0)
        yield peak("inspect of it", series, 200 * MB)


def libvirt(bench: Bench) -> Iterator[Row]:
    """Saves and restores of libvirt guests; the peer is virsh."""
    # Only here: a process that measures peaks may not load so much.
    from tests.bench import libvirt_cases

    yield from libvirt_cases.rows(bench)


def run_mapsave(config: Path, *arguments: str) -> Run:
    """Run mapsave with a configuration, as a process of its own."""
    command = [*measure.MAPSAVE, "--config", str(config), "--quiet", "--json", *arguments]
    return measure.run(command, tree.ROOT)


def result(run: Run) -> dict[str, Any]:
    """Return what mapsave printed with ``--json``, which may come after a warning."""
    found: dict[str, Any] = json.loads(run.output[run.output.index("{") :])
    return found


def service(bench: Bench) -> Iterator[Row]:
    """One service under load: many guests, many operations, a long journal."""
    from tests.bench import service_cases

    yield from service_cases.rows(bench)


def size(bench: Bench) -> Iterator[Row]:
    """Many images, many guests, many listeners."""
    from tests.bench import size_cases

    yield from size_cases.rows(bench)


def completion(bench: Bench) -> Iterator[Row]:
    """What the Tab key offers, of each kind of name."""
    from tests.bench import completion_cases

    yield from completion_cases.rows(bench)


def instant(bench: Bench) -> Iterator[Row]:
    """Restores that map RAM from the image; the peer is the same restore that reads it."""
    from tests.bench import instant_cases

    yield from instant_cases.rows(bench)


def checkpoint(bench: Bench) -> Iterator[Row]:
    """Checkpoints on XFS and btrfs; the peer is a save of the same guest that runs on."""
    from tests.bench import checkpoint_cases

    yield from checkpoint_cases.rows(bench)


def proof(bench: Bench) -> Iterator[Row]:
    """Digests of an image's data; images as archives."""
    from tests.bench import proof_cases

    yield from proof_cases.rows(bench)


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "help": help_,
    "idle": idle,
    "dense": dense,
    "restore": restore,
    "inspect": inspect,
}
# What is measured only if it is named, and alone.
NAMED: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "checkpoint": checkpoint,
    "completion": completion,
    "instant": instant,
    "libvirt": libvirt,
    "proof": proof,
    "service": service,
    "size": size,
}
