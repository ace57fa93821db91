"""The guest of a run, whoever runs it: QEMU itself, libvirt, or the emulator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.campaign.places import Site
from tests.campaign.plan import Plan
from tests.kit import (
    cli,
    domain,
    inject,
    memory,
    patterns,
    processes,
    qemu,
    qmp,
    ram,
    state,
    tree,
    wait,
)
from tests.kit.libvirtd import Daemon

MIB = 1 << 20
_PATTERNS: dict[str, patterns.Pattern] = {
    "dense": patterns.dense,
    "sparse": patterns.sparse,
    "fragmented": patterns.fragmented(),
    "single_bytes": patterns.single_bytes,
    "empty": patterns.empty,
}
# `mov dx, 0x604; mov ax, 0x2400; out dx, ax`: SLP_EN and type 1, which is S3 to the pc's ACPI.
_SUSPEND = bytes.fromhex("ba0406b80024efebfe")
# The rules of mapsave's own process are not for the QEMU that it starts.
_CLEAN = ["env", "-u", "LD_PRELOAD", "-u", "MAPSAVE_TEST_INJECT", "-u", "MAPSAVE_TEST_MET"]


def met_in(directory: Path) -> Path:
    """Return the file that gets a line for each fault that was met in a run."""
    return directory / "met"


@dataclass
class Guest:
    """A process that runs a guest, and a monitor of it, which is closed with it."""

    pid: int
    monitor: ram.Monitor
    ram: ram.LiveRam = field(init=False)
    _handle: int = field(init=False)

    def __post_init__(self) -> None:
        self._handle = os.pidfd_open(self.pid)
        self.ram = ram.LiveRam(self.pid, self.monitor)

    def alive(self) -> bool:
        """Return whether the process still runs."""
        return not processes.has_ended(self._handle)

    def ends_within(self, seconds: float) -> bool:
        """Wait for the process to end; tell whether it did."""
        with suppress(TimeoutError):
            processes.await_end(self._handle, seconds)
        return not self.alive()

    def status(self) -> str:
        """Return the run state."""
        return str(self.monitor.execute("query-status")["status"])

    def state(self) -> state.State:
        """Return what mapsave must leave as it was."""
        return state.of(self.monitor)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        processes.await_end(self._handle, wait.LONG)

    def leave(self) -> None:
        if isinstance(self.monitor, qmp.Client):
            self.monitor.close()

    def close(self) -> None:
        """Let go of the process and of its monitor."""
        os.close(self._handle)
        self.leave()


class World(Protocol):
    """Who runs the guest of a run."""

    address: str

    @contextmanager
    def started(self) -> Iterator[Guest]:
        """Run the guest in the state that the plan wants; it is gone at the end."""
        raise NotImplementedError

    @contextmanager
    def destination(self, rules: tuple[inject.Rule, ...]) -> Iterator[list[str]]:
        """Prepare a destination; yield the options of ``restore`` that lead to it."""
        raise NotImplementedError

    def current(self) -> Guest | None:
        """Return who runs under the guest's name now, None where no one does.

        The caller closes it.
        """
        ...


class _Connecting:
    """A monitor that serves one client at a time, and must be free for mapsave in between."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run a command over a connection of its own."""
        with qmp.connect(self._path) as client:
            return client.execute(command, **arguments)


def _peer(path: Path) -> int:
    with qmp.connect(path) as client:
        return client.peer_pid()


class QemuWorld:
    """A QEMU of our own; a restore starts another from the configuration's ``launch``."""

    def __init__(self, plan: Plan, directory: Path, site: Site) -> None:
        self._plan = plan
        self._directory = directory
        self._site = site
        self._shape = plan.shape
        self.address = plan.shape.name
        self._accel = "kvm" if qemu.has_kvm() and plan.shape.state != "suspended" else "tcg"
        self._source: list[str] = []
        self._target: list[str] = []
        self._prepare()

    def _prepare(self) -> None:
        """Find the arguments of source and destination, and make the files that they need."""
        size = f"{self._shape.memory}M"
        both: list[str] = []
        match self._shape.extra:
            case "numa":
                both = memory.nodes(f"{self._shape.memory // 2}M", f"{self._shape.memory // 2}M")
            case "dimm":
                both = memory.dimm()
            case "memfd":
                backend = f"memory-backend-memfd,id=m,size={size},share=on"
                both = ["-object", backend, "-machine", "memory-backend=m"]
            case "pmem":
                disk = patterns.write(self._directory / "pmem", 8 * MIB, patterns.sparse)
                backend = f"memory-backend-file,id=n,share=on,size=8M,mem-path={disk}"
                both = ["-m", "maxmem=1G", "-object", backend]
                both += ["-device", "virtio-pmem-pci,memdev=n"]
            case "file":
                content = self._directory / "memory"
                patterns.write(content, self._shape.memory * MIB, patterns.sparse)
                self._source = memory.from_file(content, size)
                self._target = memory.zeroed(size)
            case "shared":
                assert self._site.disk is not None
                self._source = memory.from_file(self._site.disk / "ram", size, shared=True)
                self._target = memory.zeroed(size)
            case "floppy":
                sector = _SUSPEND.ljust(510, b"\0") + b"\x55\xaa"
                disk = self._directory / "floppy"
                disk.write_bytes(sector.ljust(1440 << 10, b"\0"))
                both = ["-drive", f"if=floppy,format=raw,file={disk}", "-boot", "a"]
        self._source += both
        self._target += both

    @contextmanager
    def started(self) -> Iterator[Guest]:
        shape = self._shape
        pattern = _PATTERNS[shape.pattern]
        rules = self._plan.guest_rules
        with qemu.running(
            *self._source,
            name=shape.name,
            machine=shape.machine,
            memory=f"{shape.memory}M",
            accel=self._accel,
            paused=shape.state != "suspended",
            ram=None if shape.state == "suspended" else pattern,
            directory=self._directory,
            env=inject.environment(*rules, met=met_in(self._directory)) if rules else None,
        ) as found:
            if shape.state == "suspended":
                found.wait_status("suspended")
                found.ram.write(found.ram.largest(), MIB, pattern((shape.memory - 1) * MIB))
            self._launch(())
            yield Guest(found.pid, found.control)

    def _launch(self, rules: tuple[inject.Rule, ...]) -> None:
        shape = self._shape
        env = inject.environment(*rules, met=met_in(self._directory))
        words = [f"{name}={value}" for name, value in env.items()]
        argv = qemu.command(
            *self._target,
            directory=self._directory,
            name=shape.name,
            machine=shape.machine,
            memory=f"{shape.memory}M",
            accel=self._accel,
        )
        launch = [*_CLEAN, *(words if rules else []), *argv]
        self._site.add_guest(shape.name, self._directory / f"{shape.name}.qmp", launch=launch)

    @contextmanager
    def destination(self, rules: tuple[inject.Rule, ...]) -> Iterator[list[str]]:
        self._launch(rules)
        yield []
        self._launch(())

    def current(self) -> Guest | None:
        path = self._directory / f"{self._shape.name}.control"
        with suppress(FileNotFoundError, ConnectionError):
            client = qmp.Client(path)
            return Guest(client.peer_pid(), client)
        return None


class LibvirtWorld:
    """A transient domain of a libvirtd of the campaign's own."""

    def __init__(self, plan: Plan, site: cli.Site, daemon: Daemon) -> None:
        self._shape = plan.shape
        site.add_guest(plan.shape.name, libvirt={"uri": daemon.uri, "domain": plan.shape.name})
        self._daemon = daemon
        self._domain: domain.Domain | None = None
        self.address = plan.shape.name

    @contextmanager
    def started(self) -> Iterator[Guest]:
        shape = self._shape
        with domain.running(
            self._daemon,
            shape.name,
            memory=shape.memory * MIB,
            machine=shape.machine,
            ram=_PATTERNS[shape.pattern],
            paused=True,
        ) as self._domain:
            yield Guest(self._domain.pid, self._domain)

    @contextmanager
    def destination(self, rules: tuple[inject.Rule, ...]) -> Iterator[list[str]]:
        assert not rules, "libvirt starts the destination"
        yield []

    def current(self) -> Guest | None:
        assert self._domain is not None
        if self._domain.state() in (domain.GONE, "shut off"):
            return None
        return Guest(self._domain.pid, self._domain)


class EmulatorWorld:
    """An emulated QEMU; a restore goes into another one, which waits."""

    def __init__(self, plan: Plan, directory: Path, site: cli.Site) -> None:
        self._plan = plan
        self._directory = directory
        self._site = site
        self.address = plan.shape.name
        self._path: Path | None = None

    def _command(self, path: Path, *more: str) -> list[str]:
        shape = self._plan.shape
        words = [*cli.COMMAND, "emulate", "--qmp", str(path), "--name", shape.name]
        return [*words, "--memory", f"{shape.memory}M", *more]

    @contextmanager
    def _running(self, name: str, *more: str) -> Iterator[Guest]:
        path = self._directory / name
        with processes.running(
            self._command(path, *more), env={"PYTHONPATH": tree.PYTHONPATH}
        ) as process:
            wait.until(path.exists, what="the emulated guest's monitor")
            yield Guest(process.pid, _Connecting(path))
        path.unlink(missing_ok=True)

    @contextmanager
    def started(self) -> Iterator[Guest]:
        shape, seed = self._plan.shape, str(self._plan.seed)
        with self._running("e.qmp", "--pattern", shape.pattern, "--seed", seed, "-S") as guest:
            self._site.add_guest(shape.name, self._directory / "e.qmp")
            yield guest

    @contextmanager
    def destination(self, rules: tuple[inject.Rule, ...]) -> Iterator[list[str]]:
        assert not rules, "the emulated QEMU takes no rules"
        with ExitStack() as stack:
            stack.enter_context(self._running("d.qmp", "--incoming", "defer"))
            self._path = self._directory / "d.qmp"
            yield ["--into", f"qmp:{self._path}"]
        self._path = None

    def current(self) -> Guest | None:
        if self._path is None:
            return None
        with suppress(FileNotFoundError, ConnectionError):
            return Guest(_peer(self._path), _Connecting(self._path))
        return None


def world_of(plan: Plan, directory: Path, site: Site, daemon: Daemon | None) -> World:
    """Return who runs the guest of this plan."""
    if plan.world == "libvirt":
        assert daemon is not None
        return LibvirtWorld(plan, site, daemon)
    made = QemuWorld if plan.world == "qemu" else EmulatorWorld
    return made(plan, directory, site)


def left_running(directory: Path) -> list[int]:
    """Return the processes whose command lines name the directory of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.fsencode(directory) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
