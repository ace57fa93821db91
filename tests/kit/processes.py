"""Start processes so that none of them outlives its test, and so that a leak is found.

Everything the kit starts carries a mark in its environment, which children inherit; a QEMU that
``mapsave restore`` started has it because ``cli.Site`` names it in ``launch_environment:``. Only
marked processes are ever ended.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kit import wait, warm

MARK = "MAPSAVE_TEST_RUN"  # the name of the variable
_MARK = f"{MARK}={os.getpid()}-{secrets.token_hex(8)}"
_count = 0


def started() -> int:
    """Return how many processes the kit has started so far."""
    return _count


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process of the kit: ours, the mark and ``extra``.

    Settings of mapsave that whoever runs the tests may have are left out.
    """
    global _count
    _count += 1
    value = _MARK.partition("=")[2]
    ours = {key: value for key, value in os.environ.items() if not key.startswith("MAPSAVE_")}
    return {**ours, MARK: value, **(extra or {})}


@contextlib.contextmanager
def running(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[subprocess.Popen[Any]]:
    """Start a process (``options`` are those of Popen); kill it and reap it at the end."""
    env = environment(env)
    start = warm.Popen if warm.program(arguments, env, options) else subprocess.Popen
    process: subprocess.Popen[Any] = start(arguments, env=env, **options)
    try:
        # Popen may return while the kernel has not yet set these up: no search would find it.
        proc = Path(f"/proc/{process.pid}")
        # One whose first thread has ended by then has none, however long the others go on.
        wait.until(
            lambda: (proc / "cmdline").read_bytes() or process.poll() is not None or _is_dead(proc),
            what="its begin",
        )
        yield process
    finally:
        process.kill()
        process.wait(wait.LONG)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                # What was not yet flushed into a pipe whose reader is dead is lost: that is fine.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _is_dead(proc: Path) -> bool:
    """Return whether the first thread of the process of that directory has ended."""
    return (proc / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def strays() -> dict[int, str]:
    """Return the live processes that carry the mark: pid → command line."""
    mark = _MARK.encode()
    found: dict[int, str] = {}
    ours = {os.getpid(), *warm.pids()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ours:
            continue
        # Gone in the meantime, or somebody else's.
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                found[int(entry.name)] = b" ".join(words).decode(errors="replace")
    return found


def end(pid: int, timeout: float = wait.LONG) -> None:
    """Kill ``pid``, if it still lives, and wait until it is gone.

    Raises TimeoutError when it is not gone after ``timeout`` seconds.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        await_end(handle, timeout)
    finally:
        os.close(handle)


def end_at_home(home: Path) -> None:
    """End what a program of the kit has started whose home is that directory, and itself."""
    word = f"HOME={home}".encode()
    for pid in strays():
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                end(pid)


def has_ended(handle: int) -> bool:
    """Return whether the process of a pidfd has ended."""
    return bool(select.select([handle], [], [], 0)[0])


def await_end(handle: int, timeout: float) -> None:
    """Wait for the process of a pidfd to end; raise TimeoutError after ``timeout`` seconds."""
    if not select.select([handle], [], [], timeout)[0]:
        raise TimeoutError(f"the process did not end within {timeout} s")
