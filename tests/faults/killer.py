"""Run ``mapsave`` so that a signal hits it exactly at a step of its journal.

    python -m tests.faults.killer WHERE STEP SIGNAL [mapsave's arguments…]

WHERE is ``before`` or ``after`` the STEP is recorded; the first time the step comes is the one. Or
it is ``at`` a phase, which STEP names then, as it begins. The
STEP ``end`` is when all is done but the removal of the journal. SIGKILL ends the process there and
then, as nothing but a crash does. A SIGNAL may be repeated: ``INT+INT``. A pid before a
deadly one, ``1234:KILL``, sends it to that process, to QEMU, and waits for its end;
``child:KILL`` to what mapsave has started: the destination of a restore. ``STOP=2.5`` leaves
storage so many seconds for each answer from then on. The file that MAPSAVE_TEST_MET names gets a
line when it happens.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapsave import blocking
from mapsave.cli import interruption, main
from mapsave.migration import progress
from mapsave.operations import journal

END = "end"
_STOPPING = [number.name for number in interruption.SIGNALS]
# Seconds that another process may take to end, and the work to hear of a signal to ourselves.
_MOST = 240.0
_heard = threading.Event()


def arm(where: str, wanted: str, signals: str) -> None:
    """Wrap ``Journal.record`` so that ``signals`` are sent at the step ``wanted``."""
    _hear()
    if where == "at":
        _arm_at(wanted, signals)
        return
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


def _arm_at(wanted: str, signals: str) -> None:
    """Wrap ``Phases.enter`` so that ``signals`` are sent where the phase ``wanted`` begins."""
    original = progress.Phases.enter

    def enter(self: progress.Phases, phase: str) -> None:
        if phase == wanted:
            strike(signals)
        original(self, phase)

    progress.Phases.enter = enter  # type: ignore[method-assign]


def strike(signals: str) -> None:
    """Send each of ``signals``, to ourselves or to the process named."""
    if path := os.environ.get("MAPSAVE_TEST_MET"):
        with open(path, "a") as file:
            file.write(f"struck by {signals}\n")
    pid, _, names = signals.rpartition(":")
    if pid:
        for target in _children() if pid == "child" else [int(pid)]:
            _end(target, signal.Signals[f"SIG{names}"])
        return
    for name in names.split("+"):
        if name.startswith("STOP"):
            blocking.ANSWER = float(name.partition("=")[2] or blocking.ANSWER)
            # Sent to the process, another thread may take it, and this one goes on until then.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        else:
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
    if _is_to_stop(names) and _is_waited_for():
        _heard.wait(_MOST)


def _end(pid: int, number: signal.Signals) -> None:
    """Have another process die of a signal, and return when it has."""
    with contextlib.suppress(ProcessLookupError):  # a guest may have ended by then
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, number)
            select.select([handle], [], [], _MOST)
        finally:
            os.close(handle)


def _is_to_stop(names: str) -> bool:
    return any(f"SIG{name}" in _STOPPING for name in names.split("+"))


def _is_waited_for() -> bool:
    """Return whether the main thread waits for signals while another works."""
    return any(thread.name == "work" for thread in threading.enumerate())


def _hear() -> None:
    """Have ``_heard`` say that the main thread has passed a signal on to the work.

    On a busy host the work would come to its end before that.
    """
    original = interruption.Stop.signal

    def heard(self: interruption.Stop, number: int) -> float:
        seconds = original(self, number)
        _heard.set()
        return seconds

    interruption.Stop.signal = heard  # type: ignore[method-assign]


def _children() -> list[int]:
    found = Path("/proc/self/task").glob("*/children")  # proc(5)
    return [int(pid) for path in found for pid in path.read_text().split()]


if __name__ == "__main__":
    arm(*sys.argv[1:4])
    main.main(sys.argv[4:])
