"""Whether a process gets on with its input and output: what proc(5) shows without a monitor.

QEMU loads an image in its main loop and answers nothing in the meantime. Its CPU time says
nothing either: it spins while its channels read (QEMU 10.0, ``migration/multifd.c``), and where
they hang.
"""

import contextlib
import os

from mapsave.monitor import process

# Less than a page was read for something else, such as the event of a timer.
_LEAST = 4096
_LEAST_FAULTS = 32


class Activity:
    """What a process has done since it was last seen to get on.

    It may as well fill memory, which shows in page faults. They are all there is where its io
    counters may not be read (another user's process, without CAP_SYS_PTRACE).
    """

    def __init__(self, pid: int | None) -> None:
        """Watch the process ``pid``; None where it is not in our sight."""
        self._identity = process.identity(pid)
        self._moved = _bytes_moved(pid) if pid is not None else None
        self._faults = _faults(pid) if pid is not None else None
        self._switches = dict(_switches(pid)) if pid is not None else {}

    def has_moved(self) -> bool | None:
        """Return whether it has got on since the last time that it had; None where none can see.

        Besides what it reads and writes, a thread in uninterruptible sleep counts that has woken in
        between: it waits for the disk piece by piece, as in an msync(2).
        """
        if self._identity is None or not process.alive(*self._identity):
            return None
        pid = self._identity[0]
        moved, faults, switches = _bytes_moved(pid), _faults(pid), dict(_switches(pid))
        if faults is None or self._faults is None:
            return None
        if moved is not None and self._moved is not None:
            changed = moved - self._moved >= _LEAST or faults - self._faults >= _LEAST_FAULTS
        else:
            changed = faults != self._faults
        changed = changed or any(
            self._switches.get(thread, count) != count and _is_in_disk_sleep(pid, thread)
            for thread, count in switches.items()
        )
        if changed:
            self._moved, self._faults, self._switches = moved, faults, switches
        return changed


def _bytes_moved(pid: int) -> int | None:
    """Return the bytes that it has read and had written; None where that may not be seen."""
    raw = process.read(f"{pid}/io")
    if raw is None:
        return None
    fields = dict(line.split(b": ") for line in raw.splitlines())
    # rchar is of calls that have returned; read_bytes grows while a long one is under way.
    return sum(int(fields[name]) for name in (b"rchar", b"read_bytes", b"write_bytes"))


def _faults(pid: int) -> int | None:
    """Return how many page faults it has had, minor and major (fields 10 and 12 of stat)."""
    fields = process.stat(pid)
    return None if fields is None else int(fields[7]) + int(fields[9])


def _switches(pid: int) -> list[tuple[str, bytes]]:
    """Return how often each thread has gone to sleep of its own accord."""
    switches = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            status = process.read(f"{pid}/task/{thread}/status")
            if status is not None:  # else it has ended
                count = status.partition(b"\nvoluntary_ctxt_switches:")[2].partition(b"\n")[0]
                switches.append((thread, count))
    return switches


def _is_in_disk_sleep(pid: int, thread: str) -> bool:
    return (process.stat(f"{pid}/task/{thread}") or [b""])[0] == b"D"
