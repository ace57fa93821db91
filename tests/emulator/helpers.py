"""A blocking QMP client that passes descriptors, and processes to talk to: emulator and QEMU."""

import array
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kit import need, qemu

MIB = 1 << 20
OFFSET = 4096
MULTIFD = ("events", "mapped-ram", "multifd")


class Died(Exception):
    """The other side closed the connection."""


class Qmp:
    """One connection. Replies are returned whole; events are kept in ``events``."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._socket = connect(path, process)
        self._socket.settimeout(30)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        # QEMU sends the events of its start to a connected client, even before it greets it.
        while "QMP" not in (greeting := self.read()):
            self.events.append(greeting)
        self.greeting = greeting

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], rights)
        except ConnectionError:
            raise Died from None

    def read(self) -> dict[str, Any]:
        """Return the next message, event or reply."""
        while b"\r\n" not in self._buffer:
            try:
                data = self._socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Died
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def reply(self) -> dict[str, Any]:
        """Return the next reply, keeping the events that come before it.

        A second greeting is passed over: a QEMU that has only just begun to listen may send one.
        """
        while "return" not in (message := self.read()) and "error" not in message:
            if "event" in message:
                self.events.append(message)
        return message

    def raw(self, text: str | bytes, fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """Send ``text`` and return the reply."""
        self.send(text.encode() if isinstance(text, str) else text, fds)
        return self.reply()

    def ask(self, execute: str, *fds: int, **arguments: Any) -> dict[str, Any]:
        """Execute a command and return the whole reply; ``a_b`` is the argument ``a-b``."""
        wire = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.raw(json.dumps({"execute": execute, "arguments": wire}), fds)

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

    def wait(self, *statuses: str, seconds: float = 30) -> dict[str, Any]:
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
        until = time.monotonic() + 10
        while (found := self("query-status")["status"]) != state:
            assert time.monotonic() < until, found
            time.sleep(0.005)

    def trace(self) -> list[str]:
        """Return the events so far, each in a word."""
        self("query-status")
        return [_word(event) for event in self.events]

    def ended(self) -> int:
        """Wait for the process to end by itself and return its exit status."""
        return self.process.wait(timeout=30)

    def close(self) -> None:
        self._socket.close()


def _word(event: dict[str, Any]) -> str:
    data = event.get("data", {})
    if event["event"] == "MIGRATION":
        return str(data["status"])
    if event["event"] == "MIGRATION_PASS":
        return f"pass {data['pass']}"
    return str(event["event"])


def connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """Connect to ``path`` as soon as ``process`` listens there."""
    until = time.monotonic() + 30
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
            return client
        except OSError:
            client.close()
            assert process.poll() is None, f"ended with {process.returncode} before it listened"
            assert time.monotonic() < until
            time.sleep(0.01)


@contextlib.contextmanager
def _started(command: list[str], path: Path, stderr: Path, *, negotiate: bool) -> Iterator[Qmp]:
    with stderr.open("wb") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            with contextlib.closing(Qmp(path, process)) as qmp:
                if negotiate:
                    qmp("qmp_capabilities")
                yield qmp
        finally:
            process.kill()


@contextlib.contextmanager
def emulator(
    directory: Path, *arguments: str, memory: str = "33M", negotiate: bool = True
) -> Iterator[Qmp]:
    """Run an emulator; its stderr is in ``directory/emulator.stderr``."""
    path = directory / "emulator.qmp"
    command = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(path), "--memory", memory]
    with _started(
        [*command, *arguments], path, directory / "emulator.stderr", negotiate=negotiate
    ) as qmp:
        yield qmp


@contextlib.contextmanager
def real_qemu(
    directory: Path,
    *arguments: str,
    memory: str = "33M",
    ram: Path | None = None,
    machine: str = "none",
    negotiate: bool = True,
) -> Iterator[Qmp]:
    """Run a real QEMU; ``ram`` is the file that holds its RAM, block ``ram`` on machine none."""
    need.skip_if(qemu.unavailable())
    path = directory / "qemu.qmp"
    command = [qemu.BINARY, "-display", "none", "-nodefaults", "-machine", machine, "-m", memory]
    command += ["-accel", "kvm" if os.access("/dev/kvm", os.W_OK) else "tcg"]
    command += ["-qmp", f"unix:{path},server=on,wait=off"]
    if ram is not None:
        backend = f"memory-backend-file,id=ram,size={memory},mem-path={ram},share=on"
        command += ["-object", backend, "-machine", "memory-backend=ram"]
    with _started(
        [*command, *arguments], path, directory / "qemu.stderr", negotiate=negotiate
    ) as qmp:
        yield qmp


def memory_of(qmp: Qmp, size: int, directory: Path) -> bytes:
    """Return the guest's RAM by ``pmemsave``."""
    path = directory / "ram.dump"
    qmp("pmemsave", val=0, size=size, filename=str(path))
    try:
        return path.read_bytes()
    finally:
        path.unlink()


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of ``path`` for the time of the block."""
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def pass_pair(qmp: Qmp, path: Path, access: int, fdset: int = 7) -> str:
    """Pass a buffered and an O_DIRECT descriptor of ``path``; return the fdset's name."""
    for flags in (access, access | os.O_DIRECT):
        with opened(path, flags) as fd:
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
