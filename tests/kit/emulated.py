"""An emulated QEMU whose only monitor is the test's, for the parts that talk to a monitor."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.kit import processes, tree, wait


@dataclass(frozen=True)
class Emulated:
    """A running emulator and the socket it listens at."""

    path: str
    process: subprocess.Popen[bytes]

    def freeze(self) -> None:
        """Stop the process: it answers nothing until ``thaw``."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it, as a QEMU that crashes."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def emulated(socket_path: Path, *arguments: str, memory: str = "4M") -> Iterator[Emulated]:
    """Run an emulator that listens at ``socket_path``; it is gone at the end."""
    command = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(socket_path)]
    with processes.running(
        [*command, "--memory", memory, *arguments], env={"PYTHONPATH": tree.PYTHONPATH}
    ) as process:
        wait.until(lambda: _listens(socket_path, process), what="the emulator's monitor")
        yield Emulated(str(socket_path), process)


def _listens(path: Path, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"the emulator ended with {process.returncode}"
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False
