"""The ways to save that the matrix compares, each by whole processes."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import cases, guests, measure
from tests.bench.bare import Monitor
from tests.bench.guests import Site
from tests.bench.matrix_layouts import MIB, Content
from tests.bench.measure import Run
from tests.kit import cache, domain, tree
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.kit.ram import LiveRam

CHANNELS = 8
_ZERO_PAGES = ("multifd", "legacy", "none")
_FIRMWARE = MIB  # what the firmware has below this stays
_CHUNK = 256 * MIB
_REQUEST = 512 << 10  # bytes, as QEMU writes where it can
_RAM = "pc.ram"  # libvirt's name


@dataclass(frozen=True)
class Way:
    """A way to save; ``kind`` is fixed, auto, bare, virsh or disk, ``options`` mapsave's."""

    name: str
    kind: str
    options: tuple[str, ...] = ()


AUTO = Way("auto", "auto")
BARE = Way("bare script", "bare")
VIRSH = Way("virsh", "virsh")
DISK = Way("fio" if shutil.which("fio") else "dd", "disk")
_KEPT = (AUTO, VIRSH)  # their images are restored


def fixed(*, direct_io: bool, zero_pages: str, channels: int, preallocate: bool) -> Way:
    """Return the way of mapsave with all that it could choose itself."""
    words = ["direct" if direct_io else "cached", zero_pages, str(channels)]
    words += ["preallocated"] if preallocate else []
    options = ["--direct-io", "on" if direct_io else "off", "--zero-pages", zero_pages]
    options += ["--channels", str(channels), "--preallocate", "on" if preallocate else "off"]
    return Way(", ".join(words), "fixed", tuple(options))


def every(*, direct_io: bool) -> list[Way]:
    """Return all fixed ways; without ``direct_io`` those that a file system without it takes."""
    choices = itertools.product(
        (True, False) if direct_io else (False,), _ZERO_PAGES, (4, 8, 16), (False, True)
    )
    return [
        fixed(direct_io=direct, zero_pages=zeros, channels=channels, preallocate=preallocate)
        for direct, zeros, channels, preallocate in choices
    ]


def few(*, direct_io: bool) -> list[Way]:
    """Return the fixed ways that differ most: eight of them, or what is left of these."""
    useful = [
        *itertools.product((True,), _ZERO_PAGES, (False,)),
        *itertools.product((True,), ("multifd", "legacy"), (True,)),
        *itertools.product((False,), _ZERO_PAGES, (False,)),
    ]
    return [
        fixed(direct_io=direct, zero_pages=zeros, channels=CHANNELS, preallocate=preallocate)
        for direct, zeros, preallocate in useful
        if direct_io or not direct
    ]


@dataclass(frozen=True)
class Place:
    """Where is saved to: ``directory``, on a file system that is named; ``daemon`` is for virsh.

    ``site`` has what is not measured: state, configuration, sockets.
    """

    filesystem: str
    directory: Path
    site: Site
    daemon: Daemon | None
    in_memory: bool
    direct_io: bool


@dataclass
class Subject:
    """A guest of a content that is started anew for every save into a place."""

    place: Place
    content: Content
    channels: int = CHANNELS
    allocated: dict[Way, int] = field(default_factory=dict)
    _identity: str = ""

    def __post_init__(self) -> None:
        self.place.site.configure(guests.command(self.place.site, self.content.size))

    def saved(self, way: Way) -> Run:
        """Save by ``way``; what it takes on the disk is in ``allocated`` then.

        Raises RuntimeError where that fails, AssertionError where the image is not whole.
        """
        save: dict[str, Callable[[Way, Path], Run]] = {
            "bare": self._by_bare_script,
            "virsh": self._by_virsh,
            "disk": self._by_disk,
        }
        path = self._image(way)
        path.unlink(missing_ok=True)
        try:
            run = save.get(way.kind, self._by_mapsave)(way, path)
            used = path.stat().st_blocks * 512
            assert used >= self.content.used - _FIRMWARE, f"{way.name} saved {used} bytes only"
            self.allocated[way] = used
            return run
        finally:
            if way not in _KEPT:
                path.unlink(missing_ok=True)

    def restored(self, way: Way) -> Run:
        """Restore the image that ``way`` has saved last, read from the disk, and end the guest.

        Raises as ``saved`` does.
        """
        path = self._image(way)
        cache.evict(path)
        return self._back_in_libvirt(path) if way == VIRSH else self._back(path)

    def forget(self) -> None:
        """Remove the images that were kept."""
        for way in _KEPT:
            self._image(way).unlink(missing_ok=True)

    def _image(self, way: Way) -> Path:
        return self.place.directory / way.kind

    @contextmanager
    def _started(self) -> Iterator[None]:
        site = self.place.site
        argv = guests.command(site, self.content.size, self.content.source)
        process = guests.start(site, argv)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def _by_mapsave(self, way: Way, path: Path) -> Run:
        with self._started():
            words = ("save", guests.NAME, "-o", str(path), *way.options)
            return cases.run_mapsave(self.place.site.config, "--local", *words)

    def _by_bare_script(self, _: Way, path: Path) -> Run:
        words = ["save", str(self.place.site.socket), str(path), str(self.channels)]
        with self._started():
            return measure.run([*cases.BARE, *words], tree.ROOT)

    def _by_virsh(self, _: Way, path: Path) -> Run:
        daemon = self._daemon()
        with domain.running(daemon, guests.NAME, memory=self.content.size) as guest:
            self._identity = guest.uuid
            if self.content.source is not None:
                _fill(guest, self.content.source, self.content.size)
            words = ["save", guest.uuid, str(path), "--image-format", "sparse", *self._parallel()]
            run = measure.run(["virsh", "--connect", daemon.uri, *words], tree.ROOT)
            assert guest.state() == domain.GONE, "libvirt has not let go of the guest"
            return run

    def _by_disk(self, _: Way, path: Path) -> Run:
        assert self.content.source is not None
        write = _by_fio if DISK.name == "fio" else _by_dd
        return write(self.content.source, path, self.content.size)

    def _back(self, path: Path) -> Run:
        site = self.place.site
        try:
            words = ("restore", str(path), "--again", "--instant", "off")
            run = cases.run_mapsave(site.config, "--local", *words)
            monitor = Monitor(str(site.socket), timeout=0)
            try:
                ram = LiveRam(monitor.pid, monitor)
                self._expect(ram, ram.largest())
            finally:
                monitor.close()
            return run
        finally:
            guests.end_listener(site)

    def _back_in_libvirt(self, path: Path) -> Run:
        daemon = self._daemon()
        guest = Domain(daemon, guests.NAME, self._identity)
        try:
            words = ["restore", str(path), *self._parallel()]
            run = measure.run(["virsh", "--connect", daemon.uri, *words], tree.ROOT)
            self._expect(guest.ram, _RAM)
            return run
        finally:
            guest.remove()

    def _expect(self, ram: LiveRam, block: str) -> None:
        found = ram.read(block, self.content.size - MIB)
        assert found == self.content.end(), f"{self.content.layout.name}: RAM is not what it was"

    def _daemon(self) -> Daemon:
        assert self.place.daemon is not None, "virsh cannot be measured here"
        return self.place.daemon

    def _parallel(self) -> list[str]:
        return ["--bypass-cache", "--parallel-channels", str(self.channels)]


def _fill(guest: Domain, source: Path, size: int) -> None:
    ram = guest.ram
    with source.open("rb") as file:
        for start in range(_FIRMWARE, size, _CHUNK):
            file.seek(start)
            ram.write(_RAM, start, file.read(min(_CHUNK, size - start)))


def _by_fio(_: Path, path: Path, size: int) -> Run:
    """Write as many bytes by fio, in requests and with a queue as QEMU's, and fsync."""
    part = size // CHANNELS
    command = ["fio", "--name=reference", f"--filename={path}", "--rw=write", "--direct=1"]
    command += [f"--bs={_REQUEST}", f"--numjobs={CHANNELS}", f"--size={part}", "--thread"]
    command += [f"--offset_increment={part}", "--ioengine=psync", "--end_fsync=1"]
    run = measure.run([*command, "--group_reporting", "--output-format=json"], tree.ROOT)
    written = json.loads(run.output[run.output.index("{") :])["jobs"][0]["write"]
    assert written["io_bytes"] == size, written
    # Its own figure, without the start of its threads.
    return Run(written["runtime"] / 1000, run.peak, "", run.busy)


def _by_dd(source: Path, path: Path, size: int) -> Run:
    """Write the same bytes by as many dd at once as there are channels, with O_DIRECT and fsync."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    blocks = size // CHANNELS // _REQUEST
    each = f"bs={_REQUEST} count={blocks} oflag=direct conv=notrunc,fsync status=none"
    script = "for at do dd if=$from of=$to skip=$at seek=$at $each & done; wait"
    places = map(str, range(0, CHANNELS * blocks, blocks))
    command = ["env", f"from={source}", f"to={path}", f"each={each}", "sh", "-c", script, "sh"]
    return measure.run([*command, *places], tree.ROOT)
