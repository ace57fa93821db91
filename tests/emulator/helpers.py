"""Emulator and QEMU to talk to, each with a monitor that tells all it says."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapsave.config import EmulatedVersion

from tests.kit import files, need, qemu, qmp, wait

MIB = 1 << 20
OFFSET = 4096
MULTIFD = ("events", "mapped-ram", "multifd")


class Qmp(qmp.Client):
    """One connection to an emulator or a QEMU, ``process``; replies are returned whole."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes], *, negotiate: bool) -> None:
        super().__init__(path, negotiate=negotiate)
        self.process = process

    def raw(self, text: str | bytes) -> dict[str, Any]:
        """Send ``text`` and return the reply."""
        self.send(text.encode() if isinstance(text, str) else text)
        return self.reply()

    def __call__(self, execute: str, *fds: int, **arguments: Any) -> Any:
        """Execute a command that must succeed and return its result."""
        reply = self.ask(execute, *fds, **arguments)
        assert "return" in reply, (execute, arguments, reply)
        return reply["return"]

    def capabilities(self, *on: str, off: tuple[str, ...] = ()) -> dict[str, Any]:
        """Switch migration capabilities and return the whole reply."""
        wanted = [{"capability": name, "state": True} for name in on]
        wanted += [{"capability": name, "state": False} for name in off]
        return self.ask("migrate-set-capabilities", capabilities=wanted)

    def status(self) -> str:
        """Return the migration's status, ``none`` if there was none."""
        return str(self("query-migrate").get("status", "none"))

    def wait(self, *statuses: str, seconds: float = wait.LONG) -> dict[str, Any]:
        """Poll until the migration has one of ``statuses``; return what query-migrate said."""
        until = time.monotonic() + seconds
        while True:
            result: dict[str, Any] = self("query-migrate")
            if result.get("status") in statuses:
                return result
            assert time.monotonic() < until, result
            time.sleep(0.005)

    def wait_run_state(self, state: str) -> None:
        """Poll until ``query-status`` says ``state``."""
        until = time.monotonic() + wait.LONG
        while (found := self("query-status")["status"]) != state:
            assert time.monotonic() < until, found
            time.sleep(0.005)

    def trace(self) -> list[str]:
        """Return the events so far, each in a word."""
        self("query-status")
        return [_word(event) for event in self.events]

    def ended(self) -> int:
        """Wait for the process to end by itself and return its exit status."""
        return self.process.wait(timeout=wait.LONG)


def _word(event: dict[str, Any]) -> str:
    data = event.get("data", {})
    if event["event"] == "MIGRATION":
        return str(data["status"])
    if event["event"] == "MIGRATION_PASS":
        return f"pass {data['pass']}"
    return str(event["event"])


@contextlib.contextmanager
def _started(command: list[str], path: Path, stderr: Path, *, negotiate: bool) -> Iterator[Qmp]:
    def connected() -> Qmp | None:
        assert process.poll() is None, f"ended with {process.returncode} before it listened"
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return Qmp(path, process, negotiate=negotiate)
        return None

    with stderr.open("wb") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            with wait.until(connected, what="the monitor") as monitor:
                yield monitor
        finally:
            process.kill()


def emulator(
    directory: Path,
    *arguments: str,
    memory: str = "33M",
    negotiate: bool = True,
    version: EmulatedVersion | None = None,
) -> contextlib.AbstractContextManager[Qmp]:
    """Run an emulator of the QEMU that is there; its stderr is in ``directory/emulator.stderr``.

    ``version``: another one.
    """
    path = directory / "emulator.qmp"
    command = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(path), "--memory", memory]
    command += ["--as", version or qemu.emulated_version()]
    stderr = directory / "emulator.stderr"
    return _started([*command, *arguments], path, stderr, negotiate=negotiate)


def real_qemu(
    directory: Path,
    *arguments: str,
    memory: str = "33M",
    ram: Path | None = None,
    machine: str = "none",
    negotiate: bool = True,
) -> contextlib.AbstractContextManager[Qmp]:
    """Run a real QEMU; ``ram`` is the file that holds its RAM, block ``ram`` on machine none."""
    need.skip_if(qemu.unavailable())
    path = directory / "qemu.qmp"
    command = [qemu.BINARY, "-display", "none", "-nodefaults", "-machine", machine, "-m", memory]
    command += ["-accel", "kvm" if os.access("/dev/kvm", os.W_OK) else "tcg"]
    command += ["-qmp", f"unix:{path},server=on,wait=off"]
    if ram is not None:
        backend = f"memory-backend-file,id=ram,size={memory},mem-path={ram},share=on"
        command += ["-object", backend, "-machine", "memory-backend=ram"]
    stderr = directory / "qemu.stderr"
    return _started([*command, *arguments], path, stderr, negotiate=negotiate)


def memory_of(qmp: Qmp, size: int, directory: Path) -> bytes:
    """Return the guest's RAM by ``pmemsave``."""
    path = directory / "ram.dump"
    qmp("pmemsave", val=0, size=size, filename=str(path))
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def pass_pair(qmp: Qmp, path: Path, access: int, fdset: int = 7) -> str:
    """Pass a buffered and an O_DIRECT descriptor of ``path``; return the fdset's name."""
    for flags in (access, access | os.O_DIRECT):
        with files.opened(path, flags) as fd:
            qmp("add-fd", fd, fdset_id=fdset, opaque="test")
    return f"/dev/fdset/{fdset}"


def save(qmp: Qmp, target: str, *capabilities: str, **parameters: Any) -> dict[str, Any]:
    """Save to ``file:target`` and return the end result of query-migrate."""
    assert qmp.capabilities(*(capabilities or MULTIFD)) == {"return": {}}
    qmp("migrate-set-parameters", **{"max_bandwidth": 0, **parameters})
    qmp("migrate", uri=f"file:{target}")
    return qmp.wait("completed", "failed")


def restore(qmp: Qmp, source: str, *capabilities: str, **parameters: Any) -> dict[str, Any]:
    """Restore from ``file:source`` and return the end result of query-migrate."""
    assert qmp.capabilities(*(capabilities or MULTIFD)) == {"return": {}}
    qmp("migrate-set-parameters", **parameters)
    qmp("migrate-incoming", uri=f"file:{source}", exit_on_error=False)
    return qmp.wait("completed", "failed")


def sparse_ram(size: int) -> bytes:
    """Random bytes with holes of all lengths, the first and the last page used."""
    rng = random.Random(11)
    ram = bytearray(size)
    pages = [0, size // 4096 - 1]
    pages += [page for page in range(size // 4096) if rng.random() < (page >> 6) % 5 / 4]
    for page in pages:
        ram[page * 4096 : page * 4096 + 4096] = rng.randbytes(4096)
    return bytes(ram)
