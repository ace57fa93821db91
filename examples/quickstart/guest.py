"""The guest that the quickstart saves: a real QEMU if there is a good one, else the emulated one.

Only the standard library is used, and none of mapsave: what is proved here is proved from outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

BINARY = "qemu-system-x86_64"
LEAST = (9, 1)
MIB = 1 << 20
_CHUNK = 32 * MIB
_TIMEOUT = 20.0


class Failed(Exception):
    """Something did not work; the text is for the user."""


class Monitor:
    """A QMP connection (QEMU's docs/interop/qmp-spec.rst), and the process at its other end."""

    def __init__(self, path: Path) -> None:
        """Connect to the socket at ``path``. Raises Failed after 20 seconds without one."""
        self._socket = _connected(path)
        self._lines = self._socket.makefile("rb")
        self.pid = _peer(self._socket)
        self._receive()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer. Raises Failed with QEMU's message."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            reply = self._receive()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise Failed(f"{command}: {reply['error']['desc']}")

    def ram_digest(self, scratch: Path) -> str:
        """Return the SHA-256 of the guest's physical memory; ``scratch`` is a file name to use."""
        size = int(self.execute("query-memory-size-summary")["base-memory"])
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK):
            length = min(_CHUNK, size - start)
            self.execute("pmemsave", val=start, size=length, filename=str(scratch))
            content = scratch.read_bytes()
            if len(content) != length:
                raise Failed(f"pmemsave wrote {len(content)} bytes instead of {length}")
            digest.update(content)
        scratch.unlink()
        return digest.hexdigest()

    def close(self) -> None:
        """Leave the monitor, which serves one client at a time, to the next one."""
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise Failed("the guest closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message


def owner(path: Path) -> int:
    """Return the id of the process that listens at the socket. Raises OSError if none does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        return _peer(connection)


def _peer(connection: socket.socket) -> int:
    """Return the process at the other end (SO_PEERCRED, unix(7))."""
    ucred = struct.Struct("iII")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size)
    return int(ucred.unpack(found)[0])


def _connected(path: Path) -> socket.socket:
    deadline = time.monotonic() + _TIMEOUT
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise Failed(f"no monitor at {path}: {error}") from None
            time.sleep(0.02)
        else:
            return connection


def good_qemu() -> tuple[str | None, str]:
    """Return the path of a QEMU that can be used, or None; and what to say about it."""
    path = shutil.which(BINARY)
    if path is None:
        return None, f"no {BINARY} on PATH"
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"version (\d+)\.(\d+)[.\d]*", said.stdout)
    if version is None:
        return None, f"{path} does not report its version"
    words = f"QEMU {version[0].split()[1]} ({path})"
    if (int(version[1]), int(version[2])) < LEAST:
        return None, f"{words} is older than 9.1"
    return path, words


def qemu_command(qemu: str, socket_path: Path, megabytes: int, source: Path | None) -> list[str]:
    """Return a command line for a guest that stays in its firmware.

    Its RAM begins as a private copy of the file ``source``, or as zeros.
    """
    size = f"{megabytes}M"
    backend = (
        f"memory-backend-file,id=ram,size={size},share=off,mem-path={_escaped(source)}"
        if source
        else f"memory-backend-ram,id=ram,size={size}"
    )
    accelerators = ["-accel", "kvm"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else []
    return [
        *(qemu, "-name", "demo", "-display", "none", "-nodefaults", "-no-user-config"),
        *(*accelerators, "-accel", "tcg", "-machine", "pc,memory-backend=ram"),
        *("-object", backend, "-m", size),
        *("-qmp", f"unix:{_escaped(socket_path)},server=on,wait=off"),
    ]


def start_qemu(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start it paused, with a monitor that answers. Raises Failed with what QEMU printed."""
    socket_path = Path(command[-1].removeprefix("unix:").split(",server=")[0].replace(",,", ","))
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "-S"], stdin=subprocess.DEVNULL, stderr=output)
    while not socket_path.exists() and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        raise Failed(f"QEMU does not start: {log.read_text(errors='replace').strip()}")
    return process


def fill(path: Path, megabytes: int) -> None:
    """Write so many MiB of random bytes, which nothing can compress or leave out."""
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MIB))


def end(pid: int) -> None:
    """End the process and wait until it is gone. Raises Failed if it stays."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 10)):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], patience)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
    raise Failed(f"process {pid} does not end")


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")
