"""A command that is stopped by a signal, in time."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.kit import cli, wait

# Five seconds, and what a busy host adds: what waits for QEMU would wait for sixty, and what waits
# for storage forever.
_LIMIT = 45.0


def stopped(
    process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM
) -> dict[str, Any]:
    """Send the signal; return the error that is printed in time, with exit code 9."""
    began = time.monotonic()
    process.send_signal(number)
    result = cli.ended(process, check=9)
    took = time.monotonic() - began
    assert took < _LIMIT, (took, result)
    error = result.error("interrupted")
    assert number.name in error["message"]
    return error


def printed(process: subprocess.Popen[str], limit: float = wait.LONG) -> dict[str, Any]:
    """Return the JSON that a command has printed in time; it may not have ended."""
    assert process.stdout is not None
    deadline, text = time.monotonic() + limit, ""
    while True:
        left = deadline - time.monotonic()
        assert select.select([process.stdout], [], [], max(left, 0))[0], f"only {text!r} in time"
        piece = os.read(process.stdout.fileno(), 1 << 16).decode()
        assert piece, f"it has ended, and printed {text!r}"
        text += piece
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(text)
            return found


def waits_for_thaw(pid: int) -> bool:
    """Return whether a thread of the process waits for a file system that is frozen."""
    for path in Path(f"/proc/{pid}/task").glob("*/wchan"):
        with contextlib.suppress(OSError):  # it has ended
            if path.read_text() == "percpu_rwsem_wait":  # sb_start_write of Linux, since 5.7
                return True
    return False


def calls(pid: int) -> set[str]:
    """Return ``pause`` if a thread of the process is in pause(2), as where the kit lets it hang."""
    found = set()
    for file in Path(f"/proc/{pid}/task").glob("*/syscall"):
        with contextlib.suppress(OSError):  # it has ended
            found.add({"34": "pause"}.get(file.read_text().split()[0], ""))
    return found
