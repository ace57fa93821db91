"""Run one hook: check the file, run what was checked, follow its output, end it in time.

A hook runs with all rights of mapsave, so it comes only from where no one else can write. It is
opened beneath the descriptor of its directory, checked by its own descriptor, and run by that,
so that what runs is what was checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mapsave import errors, service_settings, shielded

CAPTURED = 64 << 10  # bytes of each output that are logged
_CHUNK = 64 << 10
_TAIL = 1 << 10  # bytes in which the last line is looked for
_LINGER = 1.0  # seconds for children of a hook that has ended to close its output
_KILL_TIMEOUT = 10.0  # seconds for a killed hook to be gone
_running: set[_Child] = set()


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a hook ended: ``status`` as that of Popen, None after its time; its last output."""

    status: int | None
    words: str


async def run(
    directory: Path,
    name: str,
    facts: bytes,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    *,
    timeout: float,
    grace: float,
) -> Ended:
    """Run the hook ``name`` of ``directory`` with ``facts`` on its standard input.

    ``say`` gets each line that it prints. After ``timeout`` seconds, or where we are cancelled, its
    process group is told to end, and killed ``grace`` seconds later. Raises NotPermitted if others
    could have written it, OSError or ValueError if it cannot run.
    """
    with contextlib.ExitStack() as stack:
        executable = stack.enter_context(_checked(directory, name))
        outputs = [stack.enter_context(_Output.opened(say)) for _ in ("stdout", "stderr")]
        child = stack.enter_context(_started(name, executable, facts, environment, outputs))
        try:
            in_time = await child.wait(timeout)
            if not in_time:
                await child.end(grace)
        except asyncio.CancelledError:
            await shielded.to_the_end(child.end(grace))
            raise
        # What it left running may hold its output open forever: we do not wait for that.
        await asyncio.wait([each.closed for each in outputs], timeout=_LINGER)
        return Ended(child.reap() if in_time else None, outputs[1].last_line())


@contextlib.contextmanager
def _checked(directory: Path, name: str) -> Iterator[int]:
    """Yield a descriptor of the executable, checked; it only names the file (O_PATH, open(2))."""
    service_settings.hook_name(name)
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        holder = os.open(directory, flags)
        stack.callback(os.close, holder)
        _check(holder, str(directory), stat.S_IFDIR)
        fd = os.open(name, flags, dir_fd=holder)
        stack.callback(os.close, fd)
        _check(fd, str(directory / name), stat.S_IFREG)
        yield fd


def _check(fd: int, path: str, kind: int) -> None:
    stats = os.fstat(fd)
    mode, uid = stat.S_IMODE(stats.st_mode), os.geteuid()
    problem = hint = None
    if stat.S_ISLNK(stats.st_mode):
        problem, hint = "is a symbolic link", "replace it with the file it points to"
    elif stat.S_IFMT(stats.st_mode) != kind:
        wanted = "directory" if kind == stat.S_IFDIR else "regular file"
        problem, hint = f"is not a {wanted}", f"replace it with a {wanted}"
    elif stats.st_uid not in (0, uid):
        allowed = "root" if uid == 0 else f"root or user {uid}"
        problem = f"does not belong to {allowed}"
        hint = f"check what it does, then: chown root {path}"
    elif mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem, hint = "can be written by others", f"check what it does, then: chmod go-w {path}"
    elif kind == stat.S_IFREG and not mode & 0o111:
        problem, hint = "is not executable", f"chmod +x {path}"
    if problem is not None:
        raise errors.NotPermitted(
            f"refusing to run a hook from {path!r}: it {problem} (owner {stats.st_uid}, mode "
            f"{mode:04o})",
            hint=hint,
            path=path,
            owner=stats.st_uid,
            mode=f"{mode:04o}",
        )


class _Output:
    """What a hook prints to one of its outputs: lines for ``say``, up to ``CAPTURED`` bytes."""

    def __init__(self, ours: int, theirs: int, say: Callable[[str], None]) -> None:
        self.theirs = theirs
        self._ours = ours
        self._say = say
        self._line = b""
        self._tail = b""
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, say: Callable[[str], None]) -> Iterator[_Output]:
        """Open the pipe, follow it, and at the end say what was not yet a whole line."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(ours, False)
            output = cls(ours, theirs, say)
            output._loop.add_reader(ours, output._read)
            try:
                yield output
            finally:
                output.hand_over()
                output._loop.remove_reader(ours)
                output._say_line(output._line)
        finally:
            os.close(ours)

    def hand_over(self) -> None:
        """Close the end that the hook has by now; else the output would never end."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def _read(self) -> None:
        try:
            chunk = os.read(self._ours, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._loop.remove_reader(self._ours)
            self.closed.set_result(None)
            return
        self._tail = (self._tail + chunk)[-_TAIL:]
        room = CAPTURED - self._count
        self._count += len(chunk)
        if room < 0:
            return  # read anyway, so that the hook does not wait for us
        *lines, self._line = (self._line + chunk[:room]).split(b"\n")
        for line in lines:
            self._say_line(line)
        if len(chunk) > room:
            self._say_line(self._line)
            self._line = b""
            self._say("(further output is discarded)")

    def _say_line(self, line: bytes) -> None:
        if text := _printable(line):
            self._say(text)

    def last_line(self) -> str:
        """Return the last line that is not empty, however much there was before it."""
        lines = self._tail.split(b"\n")
        return next((text for line in reversed(lines) if (text := _printable(line))), "")


def _printable(line: bytes) -> str:
    text = line.decode(errors="backslashreplace").rstrip()
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


class _Child:
    """A running hook, which leads a session and so a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes], handle: int) -> None:
        self._process = process
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(handle, self._note_end)

    def _note_end(self) -> None:
        self._loop.remove_reader(self._handle)
        self._gone.set_result(None)

    async def wait(self, seconds: float | None) -> bool:
        """Wait for its end at most so long; return whether it has ended."""
        await asyncio.wait([self._gone], timeout=seconds)
        return self._gone.done()

    async def end(self, grace: float) -> None:
        """Tell its process group to end, kill what is left of that, and wait until it is gone."""
        self._signal(signal.SIGTERM)
        await self.wait(grace)
        self._signal(signal.SIGKILL)
        await self.wait(_KILL_TIMEOUT)

    def kill(self) -> None:
        """Kill its process group. Safe in any thread."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Until it is reaped its pid, and with that the number of its group, is given to no one.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def reap(self) -> int:
        """Return its exit status, negative for a signal; it must have ended."""
        return self._process.wait()

    def close(self) -> None:
        """Leave nothing: after an unexpected error it may still run."""
        self._loop.remove_reader(self._handle)
        os.close(self._handle)
        if not self._gone.done():
            self._signal(signal.SIGKILL)
        # One whose storage hangs is not gone even then; it is reaped with the next child.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LINGER)


def kill_all() -> None:
    """Kill the hooks that run: this process is about to end without them. Safe in any thread."""
    for child in list(_running):
        child.kill()


@contextlib.contextmanager
def _started(
    name: str,
    executable: int,
    facts: bytes,
    environment: Mapping[str, str],
    outputs: list[_Output],
) -> Iterator[_Child]:
    # A file, not a pipe: no one has to write while the hook reads, and it need not read at all.
    with os.fdopen(os.memfd_create("facts", os.MFD_CLOEXEC), "r+b") as stdin:
        stdin.write(facts)
        stdin.seek(0)
        process = subprocess.Popen(
            [name],
            # A script's interpreter opens this too, so the descriptor stays open in the hook.
            executable=f"/proc/self/fd/{executable}",
            pass_fds=(executable,),
            stdin=stdin,
            stdout=outputs[0].theirs,
            stderr=outputs[1].theirs,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    for output in outputs:
        output.hand_over()
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    child = _Child(process, handle)
    _running.add(child)
    try:
        yield child
    finally:
        _running.discard(child)
        child.close()
