"""Run ``mapsave`` so that a signal hits it exactly at a step of its journal.

    python -m tests.faults.killer WHERE STEP SIGNAL [mapsave's arguments…]

WHERE is ``before`` or ``after`` the STEP is recorded; the first time the step comes is the one. The
STEP ``end`` is when all is done but the removal of the journal. SIGKILL ends the process there and
then, as nothing but a crash does. A SIGNAL may be repeated: ``INT+INT``. A pid before it,
``1234:KILL``, sends it to that process: to QEMU; ``child:KILL`` to what mapsave has started: the
destination of a restore. The file that MAPSAVE_TEST_MET names gets a line when it happens.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapsave.cli import main
from mapsave.operations import journal

END = "end"
_SETTLE = 0.05  # seconds from a signal to another process until it is sure to have arrived


def arm(where: str, wanted: str, signals: str) -> None:
    """Wrap ``Journal.record`` so that ``signals`` are sent at the step ``wanted``."""
    original = journal.Journal.record
    pending = [wanted]

    def record(self: journal.Journal, step: str, data: Mapping[str, Any]) -> None:
        hit = step in pending
        if hit:
            pending.remove(step)
        if hit and where == "before":
            strike(signals)
        original(self, step, data)
        if hit and where == "after":
            strike(signals)

    journal.Journal.record = record  # type: ignore[method-assign]
    if wanted == END:
        # Called after everything, right before the journal is removed.
        journal._end = lambda *_: strike(signals)


def strike(signals: str) -> None:
    """Send each of ``signals``, to ourselves or to the process named."""
    if path := os.environ.get("MAPSAVE_TEST_MET"):
        with open(path, "a") as file:
            file.write(f"struck by {signals}\n")
    pid, _, names = signals.rpartition(":")
    targets = _children() if pid == "child" else [int(pid or os.getpid())]
    for name in names.split("+"):
        for target in targets:
            if name == "STOP" and target == os.getpid():
                # Sent to the process, another thread may take it, and this one goes on until then.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            else:
                with contextlib.suppress(ProcessLookupError):  # a guest may have ended by then
                    os.kill(target, signal.Signals[f"SIG{name}"])
    if pid:
        time.sleep(_SETTLE)


def _children() -> list[int]:
    found = Path("/proc/self/task").glob("*/children")  # proc(5)
    return [int(pid) for path in found for pid in path.read_text().split()]


if __name__ == "__main__":
    arm(*sys.argv[1:4])
    main.main(sys.argv[4:])
