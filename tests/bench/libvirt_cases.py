"""Guests of libvirt: ``mapsave save`` and ``restore`` against ``virsh save`` and ``restore``.

Everything is measured on two private libvirtds. libvirt holds a guest that it ends until process 1,
whose orphan QEMU is, has reaped it: so the daemon is once left to the host as it is, which is what
the targets are for, and once has a reaper of its own that is never late. Of a save it is also told
after how long libvirt has let go of the guest, as mapsave waits for QEMU's end but not for init.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import cases, guests, measure
from tests.bench.cases import Bench, Row
from tests.bench.measure import Run, Series
from tests.kit import domain, libvirtd, tree
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon

HOSTS = {False: "as this host is", True: "init reaps at once"}
_SAVE_IDLE, _SAVE_DENSE, _RESTORE = 0.25, 0.65, 0.8
_CHUNK = 256 << 20
_FIRMWARE = 1 << 20  # what the firmware has below this stays
_RAM = "pc.ram"


@functools.cache
def _noise(size: int) -> bytes:
    """Return random bytes, the same ones in every call."""
    return os.urandom(size)


@dataclass
class Guest:
    """A guest of ``size`` bytes that is restarted for every save."""

    bench: Bench
    daemon: Daemon
    size: int
    dense: bool
    channels: int = 0
    identity: str = ""
    let_go: dict[str, list[Run]] = field(default_factory=dict)

    def saved(self, who: str, *, keep: bool = False) -> Run:
        """Save a new guest by ``who``: ``mapsave`` or ``virsh``. ``keep``: its image stays."""
        path = self.bench.site.image(who)
        with self._started() as guest:
            begun = time.perf_counter()
            run = self._save_by_mapsave(path) if who == "mapsave" else self._save_by_virsh(path)
            _await_gone(guest)
            taken = time.perf_counter() - begun
        self.let_go.setdefault(who, []).append(Run(taken, run.peak, ""))
        used = path.stat().st_blocks * 512
        assert not self.dense or used >= self.size - _FIRMWARE, f"{who} saved {used} bytes"
        if not keep:
            path.unlink()
        return run

    def restored(self, who: str, path: Path) -> Run:
        """Restore ``path`` by ``who``, and end the guest again."""
        _evict(path)
        guest = Domain(self.daemon, guests.NAME, self.identity)
        channels = str(self.channels)
        try:
            if who == "mapsave":
                words = ["restore", str(path), "--guest", guests.NAME, "--again"]
                run = cases.run_mapsave(self.bench.site, *words, "--channels", channels)
            else:
                options = ["--bypass-cache", "--parallel-channels", channels]
                run = self._virsh("restore", str(path), *options)
            if self.dense:
                last = self.size - _FIRMWARE
                assert guest.ram.read(_RAM, last) == self._content(last, _FIRMWARE), who
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

    def _save_by_mapsave(self, path: Path) -> Run:
        chosen = ["--channels", str(self.channels)] if self.channels else []
        run = cases.run_mapsave(self.bench.site, "save", guests.NAME, "-o", str(path), *chosen)
        strategy = json.loads(run.output)["strategy"]
        assert strategy["direct_io"], "mapsave did not use direct-io, as virsh does"
        self.channels = strategy["channels"]
        return run

    def _save_by_virsh(self, path: Path) -> Run:
        options = ["--image-format", "sparse", "--bypass-cache"]
        channels = ["--parallel-channels", str(self.channels)]
        return self._virsh("save", self.identity, str(path), *options, *channels)

    def _virsh(self, *words: str) -> Run:
        return measure.run(["virsh", "--connect", self.daemon.uri, *words], tree.ROOT)


def rows(bench: Bench, idle: int = guests.GIB) -> Iterator[Row]:
    """Measure a guest of ``idle`` bytes that are all zero, and one whose RAM is random."""
    for reaper, host in HOSTS.items():
        with libvirtd.running(reaper=reaper) as daemon:
            bench.site.describe({"libvirt": {"uri": daemon.uri, "domain": guests.NAME}})
            for size, dense in ((idle, False), (bench.dense, True)):
                yield from _rows(Guest(bench, daemon, size, dense), host, targets=not reaper)


def _rows(guest: Guest, host: str, *, targets: bool) -> Iterator[Row]:
    gib = guest.size / guests.GIB
    name = f"{'dense' if guest.dense else 'idle'} {gib:g} GiB; {host}"
    rounds = guest.bench.rounds if guest.dense else 2 * guest.bench.rounds + 1
    guest.saved("mapsave")  # warms the caches, and tells how many channels
    guest.let_go.clear()
    ours, theirs = _alternating(rounds, guest.saved)
    limit = _SAVE_DENSE if guest.dense else _SAVE_IDLE
    yield cases.compared(f"save, {name}", ours, theirs, limit if targets else None)
    ours, theirs = (Series(guest.let_go[who]) for who in ("mapsave", "virsh"))
    yield cases.compared("    until libvirt has let go of it", ours, theirs, None)
    guest.saved("mapsave", keep=True)
    path = guest.bench.site.images / "mapsave"
    try:
        guest.restored("mapsave", path)
        ours, theirs = _alternating(rounds, lambda who: guest.restored(who, path))
    finally:
        path.unlink()
    yield cases.compared(f"restore, {name}", ours, theirs, _RESTORE if targets else None)


def _alternating(rounds: int, function: Callable[[str], Run]) -> tuple[Series, Series]:
    return measure.alternating(rounds, lambda: function("mapsave"), lambda: function("virsh"))


def _await_gone(guest: Domain) -> None:
    deadline = time.monotonic() + 60
    while guest.state() != domain.GONE:
        assert time.monotonic() < deadline, "libvirt does not let go of the guest"


def _evict(path: Path) -> None:
    """Bring the file to the disk and out of the page cache, so that every restore reads it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
