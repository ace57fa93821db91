"""Multifd channels: threads that move runs of pages between RAM and the file at given offsets.

As in QEMU each channel does one synchronous system call at a time on a descriptor of its own, and
works straight from the guest's RAM, which is page-aligned, as O_DIRECT demands.
"""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Channels(Generic[Job]):
    """One thread for each of ``fds``; ``work(fd, job)`` runs in them and may raise OSError."""

    def __init__(self, fds: list[int], work: Callable[[int, Job], None]) -> None:
        self._work = work
        self._jobs: queue.Queue[Job | None] = queue.Queue(maxsize=len(fds))
        self.error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(fd,), name=f"multifd_{index}", daemon=True)
            for index, fd in enumerate(fds)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Hand ``job`` to the next idle channel; waits while all are busy."""
        self._jobs.put(job)

    def sync(self) -> None:
        self._jobs.join()

    def close(self) -> None:
        """Finish the jobs under way and end the threads; the descriptors stay open."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, fd: int) -> None:
        while True:
            job = self._jobs.get()
            try:
                if job is None:
                    return
                if self.error is None:
                    self._work(fd, job)
            except Exception as error:  # kept for the migration thread, which reports it
                self.error = error
            finally:
                self._jobs.task_done()
