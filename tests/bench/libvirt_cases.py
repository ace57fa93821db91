"""Guests of libvirt: ``mapsave save`` and ``restore`` against ``virsh save`` and ``restore``.

libvirt waits for process 1, whose orphan a QEMU is that ends, to reap it. systemd does that at
once, and process 1 of many a container only every second or two: so the daemon is a private one
below a reaper that is never late. mapsave works by the service and by the command alone.
"""

import contextlib
import functools
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench import cases, guests, measure
from tests.bench.cases import Bench, Row
from tests.bench.measure import Run, Series
from tests.kit import cache, cli, domain, libvirtd, service, tree
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon

SERVICE, LOCAL, VIRSH = "through the service", "by the command alone", "virsh"
WAYS = (SERVICE, LOCAL, VIRSH)
# What mapsave may take of virsh's time, by way and kind of guest.
SAVE = {SERVICE: {"idle": 0.75, "dense": 0.95}, LOCAL: {"idle": 0.9, "dense": 1.0}}
RESTORE = {SERVICE: {"idle": 1.3, "dense": 1.0}, LOCAL: {"idle": 1.4, "dense": 1.05}}
CLIENT = 0.07  # seconds that a save takes beside the service's work
_CHANNELS = "8"
_CHUNK = 256 << 20
_FIRMWARE = 1 << 20  # what the firmware has below this stays
_RAM = "pc.ram"


@functools.cache
def _noise(size: int) -> bytes:
    """Return random bytes, the same ones in every call."""
    return os.urandom(size)


@dataclass
class Guest:
    """A guest of ``size`` bytes that is created again for every save.

    ``results`` is what mapsave printed in its last runs, by way: the figures of its phases.
    """

    site: cli.Site
    daemon: Daemon
    size: int
    dense: bool
    identity: str = ""
    results: dict[str, list[Run]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "dense" if self.dense else "idle"

    def saved(self, way: str, *, keep: bool = False) -> Run:
        """Save a new guest; libvirt has let go of it by then. ``keep``: its image stays."""
        path = self.site.images / "image"
        path.unlink(missing_ok=True)
        with self._started() as guest:
            if way == VIRSH:
                run = self._virsh("save", self.identity, str(path), "--image-format", "sparse")
            else:
                run = self._mapsave(way, "save", guests.NAME, "-o", str(path))
            assert guest.state() == domain.GONE, f"libvirt has not let go of the guest: {way}"
        used = path.stat().st_blocks * 512
        assert not self.dense or used >= self.size - _FIRMWARE, f"{way}: {used} bytes saved"
        if not keep:
            path.unlink()
        return run

    def restored(self, way: str) -> Run:
        """Restore the image that was kept, and end the guest again."""
        path = self.site.images / "image"
        cache.evict(path)
        guest = Domain(self.daemon, guests.NAME, self.identity)
        try:
            if way == VIRSH:
                run = self._virsh("restore", str(path))
            else:
                guest_of_it = ("--guest", guests.NAME)
                run = self._mapsave(way, "restore", str(path), "--again", *guest_of_it)
            if self.dense:
                last = self.size - _FIRMWARE
                assert guest.ram.read(_RAM, last) == self._content(last, _FIRMWARE), way
        finally:
            guest.remove()
        return run

    @contextmanager
    def _started(self) -> Iterator[Domain]:
        with domain.running(self.daemon, guests.NAME, memory=self.size) as guest:
            self.identity = guest.uuid
            if self.dense:
                ram = guest.ram
                for start in range(_FIRMWARE, self.size, _CHUNK):
                    length = min(_CHUNK, self.size - start)
                    ram.write(_RAM, start, self._content(start, length))
            yield guest

    def _content(self, start: int, length: int) -> bytes:
        """Return what a dense guest has at ``start``; never more than up to the chunk's end."""
        noise = _noise(min(_CHUNK, self.size))
        at = (start - _FIRMWARE) % _CHUNK
        return noise[at : at + length]

    def _mapsave(self, way: str, *words: str) -> Run:
        local = ["--local"] if way == LOCAL else []
        run = cases.run_mapsave(self.site.config, *local, *words)
        self.results.setdefault(way, []).append(run)
        return run

    def _virsh(self, *words: str) -> Run:
        options = ["--bypass-cache", "--parallel-channels", _CHANNELS]
        return measure.run(["virsh", "--connect", self.daemon.uri, *words, *options], tree.ROOT)


def rows(bench: Bench, idle: int = guests.GIB) -> Iterator[Row]:
    """Measure a guest of ``idle`` bytes that are all zero, and one whose RAM is random."""
    site = cli.Site(bench.site.directory / "libvirt")
    with libvirtd.running() as daemon:
        site.add_guest(guests.NAME, libvirt={"uri": daemon.uri, "domain": guests.NAME})
        with service.running(site):
            for size, dense in ((idle, False), (bench.dense, True)):
                yield from _rows(Guest(site, daemon, size, dense), bench.rounds)
    assert list(site.images.iterdir()) == []


def _rows(guest: Guest, rounds: int) -> Iterator[Row]:
    name = f"{guest.kind} {guest.size / guests.GIB:g} GiB"
    rounds = rounds if guest.dense or rounds == 1 else 2 * rounds + 1
    for way in WAYS:
        guest.saved(way)  # warms the caches
    guest.results.clear()
    taken = measure.in_turn(rounds, {way: functools.partial(guest.saved, way) for way in WAYS})
    yield from _compared(guest, f"save, {name}", taken, SAVE)
    guest.saved(LOCAL, keep=True)
    with contextlib.ExitStack() as stack:
        stack.callback((guest.site.images / "image").unlink)
        for way in WAYS:
            guest.restored(way)
        guest.results.clear()
        again = {way: functools.partial(guest.restored, way) for way in WAYS}
        taken = measure.in_turn(rounds, again)
    yield from _compared(guest, f"restore, {name}", taken, RESTORE)


def _compared(
    guest: Guest, name: str, taken: dict[str, Series], targets: dict[str, dict[str, float]]
) -> Iterator[Row]:
    """Yield the rows of mapsave's two ways, each with what it spends its time on."""
    for way in (SERVICE, LOCAL):
        target = targets[way][guest.kind]
        yield cases.compared(f"{name}; {way}", taken[way], taken[VIRSH], target)
        results = [cases.result(run) for run in guest.results[way]]
        for phase in results[0]["phases_s"]:
            seconds = statistics.median(each["phases_s"][phase] for each in results)
            yield Row(f"    {phase}", f"{seconds:.3f} s")
        runs = zip(guest.results[way], results, strict=True)
        beside = statistics.median(
            run.seconds - sum(each["phases_s"].values()) for run, each in runs
        )
        if way == SERVICE and targets is SAVE and not guest.dense:
            yield cases.limited("    beside these", beside, CLIENT)
        else:
            yield Row("    beside these", f"{beside:.3f} s")
