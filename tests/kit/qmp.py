"""A blocking QMP client for tests, independent of the one that is being tested.

The protocol is the one of QEMU's ``docs/interop/qmp-spec.rst``. Out-of-band execution is never
enabled, so replies come in the order of the commands.
"""

import array
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any, Self

from mapsave import unix_socket

from tests.kit import wait

Event = dict[str, Any]
_GREETING = 30.0  # seconds


class QmpError(Exception):
    """QEMU answered a command with an error; ``error_class`` and ``desc`` are QEMU's."""

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"{command}: {desc}")
        self.error_class = error_class
        self.desc = desc


class QmpClosed(ConnectionError):
    """QEMU closed the monitor, most likely because it ended."""


class Client:
    """One connection to a monitor; a context manager that closes it.

    ``events`` holds every event received so far, oldest first; tests may clear it.
    """

    def __init__(self, path: Path, *, timeout: float = wait.LONG, negotiate: bool = True) -> None:
        """Connect to the unix socket at ``path``, and negotiate if told to.

        ``timeout`` in seconds is the limit of this and of every later command.

        Raises OSError when no one listens, TimeoutError when QEMU does not greet in time.
        """
        self.timeout = timeout
        self.events: list[Event] = []
        self._pending = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            with unix_socket.to_connect(path) as address:
                self._socket.connect(address)
            # A QEMU that is only starting sends events before it greets, and may greet twice.
            while "QMP" not in (greeting := self.read()):
                self.events.append(greeting)
            self.greeting = greeting["QMP"]
            if negotiate:
                self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; QEMU keeps running and keeps its fdsets."""
        self._socket.close()

    def peer_pid(self) -> int:
        """Return the process id of the QEMU that listens (SO_PEERCRED, unix(7))."""
        ucred = struct.Struct("iII")
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size)
        return int(ucred.unpack(raw)[0])

    def execute(self, command: str, /, *, descriptor: int | None = None, **arguments: Any) -> Any:
        """Run ``command`` and return what it returned.

        Underscores in argument names become dashes. ``descriptor`` travels with the command.

        Raises QmpError, QmpClosed, or TimeoutError after ``timeout`` seconds.
        """
        descriptors = () if descriptor is None else (descriptor,)
        reply = self.ask(command, *descriptors, **arguments)
        if "error" in reply:
            raise QmpError(command, reply["error"]["class"], reply["error"]["desc"])
        return reply["return"]

    def ask(self, command: str, /, *descriptors: int, **arguments: Any) -> dict[str, Any]:
        """Run ``command`` and return the whole reply, as ``execute`` does else."""
        wire = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = {"execute": command} | ({"arguments": wire} if wire else {})
        self.send(json.dumps(message).encode(), *descriptors)
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """Return the next reply; events that come before it are kept, a late greeting is not."""
        deadline = time.monotonic() + self.timeout
        while "return" not in (message := self.read(deadline)) and "error" not in message:
            if "event" in message:
                self.events.append(message)
        return message

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor and return what it printed."""
        return str(self.execute("human-monitor-command", command_line=line))

    def pass_descriptor(self, descriptor: int, fdset: int, opaque: str = "test kit") -> int:
        """Put a duplicate of ``descriptor`` into ``fdset``; return its number inside QEMU."""
        reply = self.execute("add-fd", descriptor=descriptor, fdset_id=fdset, opaque=opaque)
        return int(reply["fd"])

    def wait_event(self, name: str, *, timeout: float | None = None, **data: Any) -> Event:
        """Return the first event ``name`` whose data has these values, waiting for it.

        Raises TimeoutError after ``timeout`` seconds, QmpClosed when QEMU ends.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return event
            seen = len(self.events)
            received = self.read(deadline)
            assert "event" in received, f"a reply that nobody asked for: {received}"
            self.events.append(received)

    def event_names(self) -> list[str]:
        """Return the events so far, ``MIGRATION`` ones as ``MIGRATION:status``."""
        return [
            name + (f":{event['data']['status']}" if name == "MIGRATION" else "")
            for event in self.events
            if (name := str(event["event"]))
        ]

    def send(self, data: bytes, *descriptors: int) -> None:
        """Send bytes as they are, and descriptors with them. Raises QmpClosed."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        try:
            self._socket.sendmsg([data], [rights] if descriptors else [])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise QmpClosed("QEMU closed the monitor") from error

    def read(self, deadline: float | None = None) -> dict[str, Any]:
        """Return the next message of any kind. Raises QmpClosed, TimeoutError."""
        deadline = time.monotonic() + self.timeout if deadline is None else deadline
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("QEMU's monitor did not answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise QmpClosed("QEMU closed the monitor")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def connect(path: Path, *, timeout: float = wait.LONG) -> Client:
    """Connect to the monitor at ``path``, waiting up to ``timeout`` seconds for it to listen."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return greeted(path, timeout)
        except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def greeted(path: Path, timeout: float = wait.LONG) -> Client:
    """Connect to a QEMU that may be only starting. Raises as ``Client`` does, TimeoutError soon.

    It may never answer a client that comes just when it sets its monitor up, but the next one.
    """
    client = Client(path, timeout=min(timeout, _GREETING))
    client.timeout = timeout
    return client
