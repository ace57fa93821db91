"""End a command within five seconds of Ctrl-C, SIGTERM or SIGHUP, whatever it waits for.

A command works in a thread of its own, and the main thread only waits for signals: Python runs
handlers in that thread alone, so a call there that hangs on dead storage would hold them up. Where
the work does not end in time the process ends without it, as if it had crashed, which the step
journal is made for: what is left is reported, and ``mapsave recover`` finishes or undoes it.
"""

import contextlib
import contextvars
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mapsave import errors
from mapsave.strict_json import Facts

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds for the undoing; the rest of the five is for the report, and for a busy host.
LIMIT = 4.0
_REPORT_LIMIT = 0.5
# A thread that waits for a disk, or a server, cannot be killed (proc(5): state D).
_STAYS = "if the process stays, its storage hangs: it exits when the storage answers"
_JOURNAL = "mapsave.operations.journal"
_HOOKS = "mapsave.hooks.process"


class Abandoned(Exception):
    """The work has not ended in time: the process ends without it, and reports ``error``."""

    def __init__(self, error: errors.Interrupted) -> None:
        super().__init__(error.message)
        self.error = error


class Stop:
    """Passes the first signal on to the work.

    Further ones are ignored: a second signal must not interrupt the undoing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._cancel: Callable[[], object] | None = None
        self._report: Callable[[str], errors.Interrupted] = _report

    @contextlib.contextmanager
    def cancels(
        self,
        cancel: Callable[[], object],
        report: Callable[[str], errors.Interrupted] | None = None,
    ) -> Iterator[None]:
        """Have a signal call ``cancel``, at once where one has come; it may be called twice.

        ``report`` makes the error, from the signal's name, for work that goes on in spite of that.
        Outside of this a signal ends the process at once, for nothing has to be undone; from the
        end on it gets time to report what was done.
        """
        self._cancel, self._report = cancel, report or _report
        if self.name is not None:
            cancel()
        try:
            yield
        finally:
            self._cancel, self._report = _nothing, _report

    def signal(self, number: int) -> float:
        """Note a signal; return how many seconds the work still gets. Runs in the main thread."""
        if self.name is None:
            self.name = signal.Signals(number).name
            if self._cancel is None:
                return 0.0
            self._cancel()
        return LIMIT

    def abandoned(self) -> Abandoned:
        """Return the error for work that has not ended in time; hooks that still run are killed."""
        if hooks := sys.modules.get(_HOOKS):
            hooks.kill_all()
        error = self._report(self.name or "a signal")
        error.hint = f"{error.hint}; {_STAYS}" if error.hint else _STAYS
        return Abandoned(error)


def run(work: Callable[[], T], stop: Stop) -> T:
    """Run ``work`` in another thread and return what it returns; raise what it raises.

    Also a signal that comes when the work has just ended has its name in ``stop`` then. Raises
    Abandoned where it does not end in time after a signal, TooLittleLeft where no thread can be
    had.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    deadline: float | None = None
    with _signals() as signals:

        def body() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)
            signals.wake()

        context = contextvars.copy_context()
        # A daemon: the process does not wait for it.
        worker = threading.Thread(target=context.run, args=(body,), name="work", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:
            raise errors.TooLittleLeft(
                f"mapsave cannot run: {error}",
                hint="raise the limit on threads (ulimit -u, pids.max of the control group)",
            ) from None
        while not results and not failures:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise stop.abandoned() from None
            for number in signals.wait(left):
                seconds = stop.signal(number)
                if deadline is None:
                    deadline = time.monotonic() + seconds
    if stop.name is None and signals.came:
        stop.name = signal.Signals(signals.came[0]).name
    if failures:
        raise failures[0]
    return results[0]


def end_soon(code: int) -> None:
    """End the process soon, also where the report waits for the output that the work holds."""
    timer = threading.Timer(_REPORT_LIMIT, os._exit, (code,))
    timer.daemon = True
    timer.start()


def undone(name: str | None) -> errors.Interrupted:
    """Return the error for work that has ended after the signal ``name``."""
    if left := _left():
        return _with(f"interrupted by {name}", left)
    return errors.Interrupted(f"interrupted by {name}; everything was rolled back")


def _report(name: str) -> errors.Interrupted:
    if left := _left():
        return _with(f"interrupted by {name} before everything was rolled back", left)
    return errors.Interrupted(f"interrupted by {name}; nothing is left to undo")


def _left() -> list[Facts]:
    journal = sys.modules.get(_JOURNAL)  # without it no operation was begun
    return journal.unfinished() if journal is not None else []


def _with(words: str, left: list[Facts]) -> errors.Interrupted:
    """Return the error that names what is left for ``mapsave recover``."""
    return errors.Interrupted(
        f"{words}; left: {'; '.join(map(_sentence, left))}",
        hint="run 'mapsave recover': it completes or rolls back what is left; until then, a "
        "guest that was being saved may be paused",
        left=left,
    )


def _sentence(left: Facts) -> str:
    words = f"{left['operation']} of {left['guest'] or left['image']!r} at step {left['step']!r}"
    if left["guest"] and left["image"]:
        words += f", image {left['image']!r}"
    return words + (f", QEMU pid {left['pid']}" if left["pid"] else "")


def _nothing() -> None:
    """What a signal does that comes too late."""


class _Signals:
    """Signals as they arrive at a descriptor (``signal.set_wakeup_fd``), all of them in ``came``.

    Any thread may get one from the kernel, and the handler alone would not wake the main thread.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self.came: list[int] = []

    def wait(self, timeout: float | None) -> list[int]:
        """Return the signals of now, at the latest after ``timeout`` seconds or ``wake``."""
        if not select.select([self._reader], [], [], timeout)[0]:
            return []
        return [number for number in os.read(self._reader, 4096) if number in SIGNALS]

    def wake(self) -> None:
        """End ``wait``; for another thread."""
        with contextlib.suppress(OSError):  # it is not needed any more
            os.write(self._writer, b"\0")


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Take the signals that mean stop; restore their handlers at the end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = _Signals(reader, writer)

    def note(number: int, _: object) -> None:
        signals.came.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
