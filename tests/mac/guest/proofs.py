"""The QEMU of a proof, seen while it runs."""

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

from mapsave.monitor import process

from tests.kit import cli

_Seen = TypeVar("_Seen")


def seen(started: "Popen[str]", look: Callable[[int], _Seen]) -> _Seen:
    """Return what ``look`` finds at the process of the QEMU that ``mapsave`` loads an image into.

    Waits for the end of ``mapsave``, which must succeed.
    """
    found = None
    while found is None and started.poll() is None:
        for pid in _running():
            try:
                found = look(pid)
            except OSError:  # it has ended
                continue
        time.sleep(0.005)
    done = cli.ended(started)
    assert done.returncode == 0, done
    assert found is not None, "no QEMU of a proof was seen"
    return found


def _running() -> list[int]:
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [
        pid
        for pid in pids
        if "mapsave-proof" in (words := process.command_line(pid)) and "qemu-system" in words[0]
    ]
