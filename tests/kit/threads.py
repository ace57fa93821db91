"""Stop one thread of a process, and only that: what another thread would wait for never comes.

    with threads.stopped(guest.pid, "mig/src/main"):
        ...

By ptrace(2), so by root or where the host lets its users trace their processes. QEMU names its
threads with ``-name guest,debug-threads=on``.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.kit import wait

# ptrace(2), linux/ptrace.h
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000  # waitpid(2): also for threads
NAMED = ("-name", "guest,debug-threads=on")


def find(pid: int, name: str) -> int | None:
    """Return the thread of ``pid`` that is called ``name``, if there is one."""
    for entry in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if (entry / "comm").read_text().strip() == name:
                return int(entry.name)
    return None


@contextlib.contextmanager
def stopped(pid: int, name: str) -> Iterator[None]:
    """Wait for the thread ``name`` of ``pid``, and hold it from then on; let it go at the end."""
    tracer = _Tracer(wait.until(lambda: find(pid, name), what=f"the thread {name!r}"))
    tracer.start()
    tracer.ready.wait()
    try:
        if tracer.error is not None:
            raise tracer.error
        yield
    finally:
        tracer.release.set()
        tracer.join()


class _Tracer(threading.Thread):
    """Traces: the kernel takes the requests for a thread only of the one that traces it."""

    def __init__(self, thread: int) -> None:
        super().__init__(daemon=True)
        self._traced = thread
        self.ready = threading.Event()
        self.release = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self._request(_SEIZE)
            self._request(_INTERRUPT)
            os.waitpid(self._traced, _WALL)
        except OSError as error:
            self.error = error
        self.ready.set()
        if self.error is not None:
            return
        self.release.wait()
        # The process may have died in the meantime, and the thread with it.
        with contextlib.suppress(OSError):
            self._request(_DETACH)

    def _request(self, request: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        null = ctypes.c_void_p(0)
        if libc.ptrace(ctypes.c_long(request), ctypes.c_int(self._traced), null, null):
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace: {os.strerror(number)}")
