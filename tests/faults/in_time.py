"""A command that is stopped by a signal, in time."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.kit import cli

# Five seconds, and what a busy host adds to the start of the report.
_LIMIT = 8.0


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


def calls(pid: int) -> set[str]:
    """Return ``pause`` if a thread of the process is in pause(2), as where the kit lets it hang."""
    found = set()
    for file in Path(f"/proc/{pid}/task").glob("*/syscall"):
        with contextlib.suppress(OSError):  # it has ended
            found.add({"34": "pause"}.get(file.read_text().split()[0], ""))
    return found
