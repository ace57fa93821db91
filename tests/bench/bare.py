"""What mapsave is measured against: a script that saves and restores by bare QMP, and no more.

    python bare.py save SOCKET IMAGE CHANNELS
    python bare.py restore SOCKET IMAGE CHANNELS QEMU...

It hands over the same pair of descriptors, sets the same parameters and waits for the same events
as mapsave; it checks nothing, remembers nothing and writes no header.
"""

import array
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Any

MIB = 1 << 20
FDSET = 7
URI = f"file:/dev/fdset/{FDSET},offset={MIB}"


class Monitor:
    """A QMP connection; see QEMU's docs/interop/qmp-spec.rst."""

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        """Connect, waiting for somebody to listen. Raises OSError after ``timeout`` seconds."""
        self._socket = _connected(path, timeout)
        self._lines = self._socket.makefile("rb")
        ucred = struct.Struct("iII")
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size)
        self.pid = int(ucred.unpack(found)[0])
        self._states: list[str] = []
        self._receive()
        self.execute("qmp_capabilities")

    def execute(self, command: str, /, *, descriptor: int | None = None, **arguments: Any) -> Any:
        """Run a command and return its answer; underscores in names become dashes."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = json.dumps({"execute": command, "arguments": named}).encode()
        rights = [] if descriptor is None else [array.array("i", [descriptor])]
        self._socket.sendmsg(
            [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, each) for each in rights]
        )
        while True:
            reply = self._receive()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']['desc']}")

    def wait_completed(self) -> None:
        """Wait until the migration has completed, by its events."""
        while "completed" not in self._states:
            self._receive()
            if "failed" in self._states:
                raise RuntimeError(f"failed: {self.execute('query-migrate')}")

    def wait_closed(self) -> None:
        """Wait until QEMU closes the monitor."""
        while self._lines.readline():
            pass

    def close(self) -> None:
        """Leave the monitor to the next client."""
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU closed the monitor")
        message: dict[str, Any] = json.loads(line)
        if message.get("event") == "MIGRATION":
            self._states.append(message["data"]["status"])
        return message


def _connected(path: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return connection


def prepare(monitor: Monitor, image: str, flags: int, channels: int) -> int:
    """Set capabilities and parameters and hand the pair over; return the buffered descriptor."""
    wanted = {"mapped-ram": True, "multifd": True, "events": True}
    states = [{"capability": name, "state": state} for name, state in wanted.items()]
    monitor.execute("migrate-set-capabilities", capabilities=states)
    monitor.execute(
        "migrate-set-parameters", multifd_channels=channels, direct_io=True, max_bandwidth=0
    )
    buffered = os.open(image, flags, 0o600)
    direct = os.open(image, (flags & ~os.O_EXCL) | os.O_DIRECT)
    for descriptor in (buffered, direct):
        monitor.execute("add-fd", descriptor=descriptor, fdset_id=FDSET, opaque="bare")
    os.close(direct)
    return buffered


def save(path: str, image: str, channels: int) -> None:
    """Save, bring the image to stable storage, end QEMU and wait until it is gone."""
    monitor = Monitor(path)
    buffered = prepare(monitor, image, os.O_WRONLY | os.O_CREAT | os.O_EXCL, channels)
    handle = os.pidfd_open(monitor.pid)
    monitor.execute("migrate", uri=URI)
    monitor.wait_completed()
    monitor.execute("remove-fd", fdset_id=FDSET)
    os.fsync(buffered)
    monitor.execute("quit")
    monitor.wait_closed()
    monitor.close()
    select.select([handle], [], [])
    os.close(handle)
    os.close(buffered)


def restore(path: str, image: str, channels: int, command: list[str]) -> None:
    """Start QEMU and load the image into it; QEMU stays."""
    null = subprocess.DEVNULL
    subprocess.Popen(
        [*command, "-incoming", "defer"], stdin=null, stdout=null, start_new_session=True
    )
    load(Monitor(path), image, channels)


def load(monitor: Monitor, image: str, channels: int) -> None:
    """Load the image into a QEMU that waits with ``-incoming defer``."""
    os.close(prepare(monitor, image, os.O_RDONLY, channels))
    monitor.execute("stop")
    monitor.execute("migrate-incoming", uri=URI, exit_on_error=False)
    monitor.wait_completed()
    monitor.execute("remove-fd", fdset_id=FDSET)


def main() -> None:
    """Do what the command line says."""
    what, path, image, channels, *command = sys.argv[1:]
    if what == "save":
        save(path, image, int(channels))
    else:
        restore(path, image, int(channels), command)


if __name__ == "__main__":
    main()
