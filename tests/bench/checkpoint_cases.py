"""Checkpoints on XFS and btrfs, against saves of the same guest: pauses, bytes, space, the price.

On loop devices. The guest's RAM file is filled in pieces of a page before QEMU maps it, and written
to through a mapping of it, as QEMU's own is: the kernel does not tell one from the other.
"""

import contextlib
import math
import mmap
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsave.image import extents

from tests.bench import cases, guests, walker, writer
from tests.bench.bare import MIB
from tests.bench.cases import Bench, Row
from tests.bench.guests import GIB, NAME, Site
from tests.kit import storage

PAGE = walker.PAGE
KINDS: tuple[storage.Kind, ...] = ("xfs", "btrfs")
_EACH = 4  # checkpoints for each round that is asked for: 20 by default
_SAVES = 2  # of each kind, at most: each pauses the guest for seconds
_SECONDS = 22  # for each round, after which a series of checkpoints ends
_DIRTIED = 64 * MIB  # before each checkpoint, of 4 GiB
_IDLE = 0.03  # seconds of pause
_BUSY: dict[storage.Kind, float] = {"xfs": 0.15, "btrfs": 0.08}
_WRITTEN: dict[storage.Kind, float] = {"xfs": 2.5, "btrfs": 1.5}
_BESIDE = 8 * MIB
_KEPT = 1.2  # of RAM, that all occupy beside what was dirtied
_RUNS = 8.0  # seconds for which a guest writes
_BLOCK = 4096


@dataclass
class Place:
    """A file system on a loop device with a guest's RAM file and its images."""

    kind: storage.Kind
    site: Site
    size: int
    device: str
    numbers: Iterator[random.Random] = field(
        default_factory=lambda: (random.Random(seed) for seed in range(1 << 30))
    )

    @property
    def ram(self) -> Path:
        return self.site.directory / "guest.ram"

    @property
    def dirtied(self) -> int:
        """Bytes that are dirtied before each checkpoint: a part of the RAM."""
        return _DIRTIED * self.size // (4 * GIB)

    def dirty(self) -> None:
        """Write to pages at random over all of the RAM, each of which is another one."""
        pages = range(writer.FIRST // PAGE, self.size // PAGE)
        with self.ram.open("r+b") as file, mmap.mmap(file.fileno(), self.size) as mapped:
            for page in next(self.numbers).sample(pages, self.dirtied // PAGE):
                mapped[page * PAGE + 8] = (mapped[page * PAGE + 8] + 1) % 256

    def written(self) -> int:
        """Return how many bytes were written to the device since it was made (Linux: iostats)."""
        return int(Path(f"/sys/block/{self.device}/stat").read_text().split()[6]) * 512

    def image(self, number: int) -> Path:
        return self.site.images / f"c{number}"


@dataclass
class Taken:
    """What a series of checkpoints has shown: pauses in seconds, bytes written by each."""

    pauses: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    extents: int = 0
    took: list[float] = field(default_factory=list)


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows of both file systems, and what the guest pays."""
    for kind in KINDS:
        with _place(bench, kind, bench.dense) as place:
            yield from _pauses(bench, place)
    yield from _price(bench)


@contextlib.contextmanager
def _place(bench: Bench, kind: storage.Kind, size: int) -> Iterator[Place]:
    """Make such a file system, and the RAM file of a guest on it, full of random bytes."""
    directory = bench.site.directory
    with storage.loop_filesystem(kind, 6 * size, directory) as mounted:
        root = mounted / "bench"
        root.mkdir(mode=0o700)
        place = Place(kind, Site(root, bench.site.socket), size, _device(mounted))
        _fill(place.ram, size)
        place.site.describe({"qmp": str(place.site.socket)})
        yield place


def _device(mounted: Path) -> str:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    (source,) = (words[0] for words in mounts if words[1] == str(mounted))
    return Path(source).name


def _fill(path: Path, size: int) -> None:
    """Write random bytes, a page at a time: so XFS keeps pages of this size in its cache."""
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            piece = memoryview(os.urandom(MIB))
            for at in range(0, MIB, PAGE):
                file.write(piece[at : at + PAGE])
        os.fsync(file.fileno())


@contextlib.contextmanager
def _running(
    site: Site, backend: str, size: int, *, writes: bool
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a guest that has such memory, under KVM if it can be used; yield what it says."""
    bios = writer.firmware(site.directory / "writer.bin", size, writes=writes)
    said = site.directory / "said"
    said.unlink(missing_ok=True)
    argv = [word for word in guests.command(site, size) if word != "-S"]
    (own,) = (word for word in argv if word.startswith("memory-backend-ram,"))
    argv[argv.index(own)] = f"{backend},id=ram,size={size}"
    process = guests.start(site, [*argv, *walker.arguments(bios, said)])
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


def _shared(place: Place) -> str:
    return f"memory-backend-file,mem-path={place.ram},share=on"


def _run(place: Place, *words: str) -> dict[str, Any]:
    return cases.result(cases.run_mapsave(place.site.config, *words))


def _checkpoints(bench: Bench, place: Place, *, dirties: bool, first: int = 0) -> Taken:
    """Take as many checkpoints as were asked for, or as there is time for."""
    found, until = Taken(), time.monotonic() + _SECONDS * bench.rounds
    for number in range(_EACH * bench.rounds):
        before = place.written()
        if dirties:
            place.dirty()
        done = _run(place, "checkpoint", NAME, "-o", str(place.image(first + number)))
        found.bytes.append(place.written() - before)
        found.pauses.append(done["downtime_s"])
        found.took.append(done["duration_s"])
        found.extents = done["checkpoint"]["extents"]
        if time.monotonic() > until:
            break
    return found


def _pauses(bench: Bench, place: Place) -> Iterator[Row]:
    name = f"{place.size / GIB:g} GiB, {place.kind}"
    with _running(place.site, _shared(place), place.size, writes=False):
        _run(place, "checkpoint", NAME, "-o", str(place.image(0)))
        place.image(0).unlink()
        idle = _checkpoints(bench, place, dirties=False)
        for number in range(len(idle.pauses)):
            place.image(number).unlink()
        used = _occupied([place.ram])
        busy = _checkpoints(bench, place, dirties=True)
        images = [place.image(number) for number in range(len(busy.pauses))]
        occupied = _occupied([place.ram, *images])
        saves = {way: _saved(place, *way) for way in (("--live",), ())}
    paused, live = saves[()], saves["--live",]
    yield _pause(f"pause, {name}, idle", idle.pauses, _IDLE, paused)
    yield Row("    against save --live", _ms(_p95(idle.pauses)), _ms(live))
    dirtied = f"{place.dirtied // MIB} MiB dirtied before each"
    limit = _BUSY[place.kind]
    yield _pause(f"pause, {name}, {dirtied}", busy.pauses[: 4 * _EACH + 4], limit, paused)
    if len(busy.pauses) > 5 * _EACH:
        yield _pause("    the last 20", busy.pauses[-20:], limit, paused)
    yield Row(
        "    its longest, median; extents at last",
        f"{_ms(max(busy.pauses))} {_ms(statistics.median(busy.pauses))}",
        f"{busy.extents}",
    )
    took = statistics.median(busy.took)
    yield Row("    the whole command, first and last", f"{busy.took[0]:.1f} s", f"{took:.1f} s")
    ratio = (sum(busy.bytes) / len(busy.bytes) - _BESIDE) / place.dirtied
    most = _WRITTEN[place.kind]
    yield Row(
        "    bytes written for each, beyond 8 MiB",
        f"{sum(busy.bytes) / len(busy.bytes) / MIB:.0f} MiB",
        f"{place.dirtied / MIB:.0f} MiB",
        f"{ratio:.2f}",
        f"<= {most} x",
        ratio <= most,
    )
    allowed = _KEPT * place.size + len(images) * place.dirtied
    yield Row(
        f"    space of RAM file and {len(images)} images",
        f"{occupied / MIB:.0f} MiB",
        f"{used / MIB:.0f} MiB",
        f"{occupied / place.size:.2f}",
        f"<= {allowed / MIB:.0f} MiB",
        occupied <= allowed,
    )


def _pause(what: str, pauses: Sequence[float], limit: float, peer: float) -> Row:
    worst = _p95(pauses)
    shown = f"{what}, p95 of {len(pauses)}"
    return Row(shown, _ms(worst), _ms(peer), "", f"<= {limit * 1000:.0f} ms", worst <= limit)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _p95(found: Sequence[float]) -> float:
    return sorted(found)[math.ceil(0.95 * len(found)) - 1]


def _saved(place: Place, *options: str) -> float:
    """Return the median of the seconds for which saves of the same guest pause it."""
    found = []
    path = place.site.images / "saved"
    for _ in range(_SAVES):
        place.dirty()
        done = _run(place, "save", NAME, "-o", str(path), "--then", "resume", *options)
        found.append(done["downtime_s"])
        path.unlink()
    return statistics.median(found)


def _occupied(paths: Sequence[Path]) -> int:
    """Return what files occupy together, each block of the device once (FIEMAP)."""
    blocks = bytearray()
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            sure, unsure = extents.places(file.fileno(), 0, path.stat().st_size)
        for _, place, length in (*sure, *unsure):
            first, last = place // _BLOCK, -(-(place + length) // _BLOCK)
            if last > len(blocks):
                blocks.extend(bytes(last - len(blocks)))
            blocks[first:last] = b"\1" * (last - first)
    return blocks.count(1) * _BLOCK


def _price(bench: Bench) -> Iterator[Row]:
    """Let a guest write to memory of its own, and to a shared file, as fast as it can."""
    site, size = bench.site, min(bench.dense, GIB)
    site.describe({"qmp": str(site.socket)})
    with _running(site, "memory-backend-ram", size, writes=True) as (_, said):
        anonymous = _rate(said)
    for kind in KINDS:
        with (
            _place(bench, kind, size) as place,
            _running(place.site, _shared(place), size, writes=True) as (_, said),
        ):
            alone = _rate(said)
            after = _rate(said, _checkpointing(place))
        span = f"writes at random to {writer.span(size) // MIB} MiB"
        for name, rate in ((f"{span}, {kind}", alone), ("    with a checkpoint each 2 s", after)):
            shown = (f"{rate / 1e6:.2f} M/s", f"{anonymous / 1e6:.2f} M/s")
            yield Row(name, *shown, f"{rate / anonymous:.3f}")


def _checkpointing(place: Place) -> Callable[[], None]:
    numbers = iter(range(1 << 30))

    def take() -> None:
        path = place.image(next(numbers))
        _run(place, "checkpoint", NAME, "-o", str(path))
        path.unlink()

    return take


def _rate(said: Path, meanwhile: Callable[[], None] | None = None) -> float:
    """Return the writes a second, after all of the memory was written to once."""
    time.sleep(2.0)
    began, before = time.monotonic(), writer.written(said)
    while time.monotonic() - began < _RUNS:
        if meanwhile is not None:
            meanwhile()
        time.sleep(2.0)
    done = writer.written(said) - before
    assert done, "the guest's firmware does not write"
    return done / (time.monotonic() - began)
