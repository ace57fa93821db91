"""Emulated QEMUs: one whose only monitor is the test's, and guests that a restore starts again."""

import hashlib
import json
import signal
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsave.config import EmulatedVersion

from tests.kit import cli, processes, qmp, ram, state, tree, wait

MIB = 1 << 20


@dataclass(frozen=True)
class Emulated:
    """A running emulator and the socket it listens at."""

    path: str
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The guest as mapsave takes it."""
        return f"qmp:{self.path}"

    def state(self) -> state.State:
        """Return what mapsave must leave as it was. Its monitor must be free, as for the RAM."""
        with qmp.connect(Path(self.path)) as client:
            return state.of(client)

    def snapshot_ram(self, directory: Path) -> ram.Snapshot:
        """Copy the RAM into ``directory``."""
        directory.mkdir(parents=True)
        ram_of(Path(self.path), directory / "ram")
        return ram.Snapshot({"ram": directory / "ram"})

    def freeze(self) -> None:
        """Stop the process: it answers nothing until ``thaw``."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it, as a QEMU that crashes."""
        self.process.kill()
        self.process.wait(wait.LONG)


@contextmanager
def emulated(
    socket_path: Path, *arguments: str, memory: str = "4M", version: EmulatedVersion = "10.0"
) -> Iterator[Emulated]:
    """Run an emulator that listens at ``socket_path``; it is gone at the end."""
    command = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(socket_path)]
    command += ["--as", version]
    with processes.running(
        [*command, "--memory", memory, *arguments], env={"PYTHONPATH": tree.PYTHONPATH}
    ) as process:
        wait.until(lambda: _listens(socket_path, process), what="the emulator's monitor")
        yield Emulated(str(socket_path), process)


def _listens(path: Path, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"the emulator ended with {process.returncode}"
    with suppress(OSError), sockets.socket(sockets.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def socket_of(site: cli.Site, name: str) -> Path:
    """Return where the guest ``name`` listens."""
    return site.directory / f"{name}.qmp"


@contextmanager
def guest(
    site: cli.Site,
    name: str,
    *,
    size: int = 8 * MIB,
    throttle: str | None = None,
    priority: int = 0,
    paused: bool = False,
    pattern: str = "random",
    env: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Run an emulated guest that a restore starts again, unthrottled; yield its monitor socket.

    ``env`` is added to its environment, such as what ``inject.environment`` returns.

    Whatever listens there at the end, the guest or the one restored, is ended.
    """
    socket = socket_of(site, name)
    emulator = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(socket)]
    launch = [*emulator, "--memory", str(size), "--name", name]
    site.add_guest(name, socket, launch=launch, priority=priority)
    words = ["--pattern", pattern, "--seed", str(sum(name.encode()))]
    words += ["--throttle", throttle] if throttle else []
    words += ["-S"] if paused else []
    path = {"PYTHONPATH": tree.PYTHONPATH}
    with processes.running([*launch, *words], env={**path, **(env or {})}):
        try:
            wait.until(lambda: answers(socket), what=f"the monitor of {name}")
            yield socket
        finally:
            end(socket)


def answers(socket: Path) -> bool:
    """Return whether a guest is there."""
    with suppress(OSError):
        qmp.Client(socket).close()
        return True
    return False


def pid(socket: Path) -> int:
    """Return the process id of the QEMU that listens at ``socket``. Raises OSError."""
    with qmp.Client(socket) as client:
        return client.peer_pid()


def end(socket: Path) -> None:
    """End the QEMU that listens at ``socket``, if there is one."""
    with suppress(OSError):
        processes.end(pid(socket))


def status(socket: Path) -> str:
    """Return the run state of the guest."""
    with qmp.connect(socket) as client:
        return str(client.execute("query-status")["status"])


def ram_of(socket: Path, target: Path) -> str:
    """Return the SHA-256 of the RAM of a guest that does not change it."""
    with qmp.connect(socket) as client:
        size = client.execute("query-memory-size-summary")["base-memory"]
        client.execute("pmemsave", val=0, size=size, filename=str(target))
    return hashlib.sha256(target.read_bytes()).hexdigest()


def recorded(site: cli.Site) -> list[dict[str, Any]]:
    """Return the guests of the record; empty where there is none."""
    path = site.state / "save-all.json"
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text())["guests"]
    return found


def committed(site: cli.Site) -> set[str]:
    """Return the names of the guests that the record says are in an image."""
    return {each["guest"] for each in recorded(site) if each["time"]}


def outcomes(done: dict[str, Any]) -> dict[str, str]:
    """Return what became of each guest of a summary, in its order."""
    return {line["guest"]: line["outcome"] for line in done["guests"]}
