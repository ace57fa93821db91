"""The step journal: each step of an operation is on stable storage before the step is taken.

One file an operation, in the state directory: JSON lines, the first of which says what the
operation is about. Its owner holds it locked; it is removed when nothing is left to undo. What is
found unlocked belongs to a manager that died, and is what ``mapsave recover`` works from.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import fcntl
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.image import image
from manager.operations import locks, unfinished, waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

_SUFFIX = ".jsonl"
_AROUND = "around"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"  # random(4): another one after each boot


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who wants to see the steps of an operation, and by what id it knows the operation.

    ``saw`` is called with each step and its data, once that is on stable storage.
    """

    operation: str
    saw: Callable[[str, Mapping[str, Any]], None]


_watch: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)
# The journal of what is done around the operation, by its file name.
_within: contextvars.ContextVar[str | None] = contextvars.ContextVar("within", default=None)


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Show the steps of what this task does to ``watch``."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def watching() -> str | None:
    """Return the id of the operation that this task is of; None where nobody gave it one."""
    watch = _watch.get()
    return watch.operation if watch is not None else None


class JournalUnwritable(OSError):
    """A step could not be recorded; ``filename`` is the journal's path."""


class Journal:
    """The journal of one running operation."""

    def __init__(self, fd: int, path: Path, watch: Watch | None) -> None:
        self._fd = fd
        self.path = path
        self._settled = False
        self._watch = watch

    def step(self, step: str, **data: Any) -> None:
        """Record that ``step`` is about to be taken, durably. Raises JournalUnwritable."""
        self.record(step, data)
        self.show(step, data)

    async def step_in_thread(self, step: str, **data: Any) -> None:
        """Do as ``step`` does, off the event loop: a disk may take seconds to write it.

        Cancelled, it still waits until the step is recorded.
        """
        await waiting.in_thread(self.record, step, data)
        self.show(step, data)

    def record(self, step: str, data: Mapping[str, Any]) -> None:
        """Bring a step to stable storage. Blocks. Raises JournalUnwritable."""
        try:
            _write(self._fd, step, data)
        except OSError as error:
            raise JournalUnwritable(error.errno, error.strerror, str(self.path)) from None
        unfinished.note(self.path, step, data)

    def show(self, step: str, data: Mapping[str, Any]) -> None:
        """Show a recorded step to whoever watches, which is of the event loop's thread."""
        if self._watch is not None:
            self._watch.saw(step, data)

    def unsettled(self) -> None:
        """Keep the file at the end: something is left for ``mapsave recover``."""
        self._settled = False

    def settled(self) -> None:
        """Remove the file at the end: everything was finished or undone."""
        self._settled = True

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to undo."""
        return self._settled


@contextlib.contextmanager
def operation(state: Path, kind: str, **facts: Any) -> Iterator[Journal]:
    """Begin the journal of an operation of ``kind``.

    The file goes at the end, also after an error that was handled by undoing everything; it stays
    where the operation said ``unsettled`` last.

    Raises Refused where the journal cannot be written: without one nothing is begun.
    """
    with contextlib.ExitStack() as stack:
        journal, begun = _begin(stack, state, kind, facts)
        journal.show("begin", begun)
        yield journal


@contextlib.contextmanager
def around(state: Path, **facts: Any) -> Iterator[Journal]:
    """Begin the journal of what is done around an operation: the hooks before and behind it.

    That of the operation itself names it as ``within``; its steps are not the operation's, and
    nobody watches them. Raises Refused.
    """
    with operation(state, _AROUND, **facts) as journal:
        token = _within.set(journal.path.name)
        try:
            yield journal
        finally:
            _within.reset(token)


def _write(fd: int, step: str, data: Mapping[str, Any]) -> None:
    record = {"step": step, "time": time.time(), **data}
    line = json.dumps(record).encode("ascii") + b"\n"
    if os.write(fd, line) != len(line):  # write(2): what fits is written first
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fdatasync(fd)


@contextlib.asynccontextmanager
async def operation_in_thread(state: Path, kind: str, **facts: Any) -> AsyncIterator[Journal]:
    """Do as ``operation`` does, off the event loop: a disk may take seconds for the beginning."""
    with contextlib.ExitStack() as stack:
        journal, begun = await waiting.in_thread(_begin, stack, state, kind, facts)
        journal.show("begin", begun)
        yield journal


def _begin(
    stack: contextlib.ExitStack, state: Path, kind: str, facts: Mapping[str, Any]
) -> tuple[Journal, dict[str, Any]]:
    """Make a journal whose end is in ``stack``; return it with the data of its first step."""
    directory = locks.state_directory(state, "journal")
    begun = {"kind": kind, "manager_pid": os.getpid(), "boot": boot_id(), **facts}
    watch, within = _watch.get(), _within.get()
    if watch is not None:
        begun["operation"] = watch.operation
    if within is not None:
        begun["within"] = within
    try:
        path, fd = _create(directory, kind)
        stack.callback(os.close, fd)
        journal = Journal(fd, path, None if kind == _AROUND else watch)
        journal.settled()
        stack.callback(_end, journal, path)
        journal.record("begin", begun)
        _sync_directory(directory)
    except OSError as error:
        raise errors.Refused(
            f"cannot write the journal in {str(directory)!r}: {error.strerror}",
            hint="make room there, or set 'state:' in the configuration",
        ) from None
    return journal, begun


def _create(directory: Path, kind: str) -> tuple[Path, int]:
    """Make a journal and lock it: one that ``remove_empty`` did not take for a dead manager's."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    while True:
        path = directory / f"{kind}-{uuid.uuid4()}{_SUFFIX}"
        fd = os.open(path, flags, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)  # whoever has it looks at it for a moment only
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)


def _end(journal: Journal, path: Path) -> None:
    if journal.is_settled:
        path.unlink(missing_ok=True)
        unfinished.forget(path)


def boot_id() -> str | None:
    """Return what names this boot of the host; None where the kernel does not tell."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclasses.dataclass(frozen=True)
class Orphan:
    """The journal of an operation whose manager died: its facts, and the steps it had come to."""

    path: Path
    kind: str
    facts: dict[str, Any]
    steps: tuple[str, ...]

    @property
    def last(self) -> str:
        """The step that was taken, or about to be, when the manager died."""
        return self.steps[-1]

    def reached(self, step: str) -> bool:
        """Tell whether ``step`` was recorded."""
        return step in self.steps

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the host is up since then.

        If not, pids mean other processes, and what was not synced may be lost though it was
        written.
        """
        return self.facts.get("boot") == boot_id()


@contextlib.contextmanager
def orphans(state: Path, *, around: bool = False) -> Iterator[list[Orphan]]:
    """Yield the journals without an owner, locked so that nobody else works on them meanwhile.

    They are those of operations, or with ``around`` those of what was done around operations. The
    caller removes each with ``forget`` once it is dealt with.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for path in _paths(state):
            if path.name.startswith(f"{_AROUND}-") != around:
                continue
            with contextlib.ExitStack() as lock:
                if lock.enter_context(_locked(path)) and (orphan := _read(path)) is not None:
                    found.append(orphan)
                    stack.enter_context(lock.pop_all())
        yield found


def remove_empty(state: Path) -> None:
    """Remove the journals of managers that died before the first step was recorded whole."""
    for path in _paths(state):
        with _locked(path) as is_locked:
            if is_locked and _read(path) is None:
                path.unlink(missing_ok=True)


def _paths(state: Path) -> list[Path]:
    directory = state / "journal"
    return sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else []


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a journal; yield False where its owner lives, or has removed it meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield os.fstat(fd).st_nlink > 0
    finally:
        os.close(fd)


def _read(path: Path) -> Orphan | None:
    """Read a journal; its last line may be torn, and was then not acted upon."""
    facts: dict[str, Any] = {}
    steps = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            steps.append(str(record.pop("step")))
        except (ValueError, TypeError, AttributeError, KeyError):
            break  # torn by a crash of the host: zeros, or a piece
        record.pop("time", None)
        facts.update(record)
    if not steps:
        return None  # died before its first step was whole: nothing was touched
    return Orphan(path, str(facts.get("kind", "")), facts, tuple(steps))


def partial_images(state: Path) -> set[str]:
    """Return the paths of the partial images that journals speak of, owned or not."""
    return {
        os.path.join(str(facts["directory"]), image.partial_name(str(facts["name"])))
        for facts in _all_facts(state)
        if "directory" in facts
    }


def operations(state: Path) -> set[str]:
    """Return the ids of the service's operations that journals speak of, owned or not."""
    return {str(facts["operation"]) for facts in _all_facts(state) if facts.get("operation")}


def within(state: Path) -> set[str]:
    """Return the names of the journals around operations that are not dealt with yet."""
    return {str(facts["within"]) for facts in _all_facts(state) if facts.get("within")}


def claimed(state: Path, image_uuid: uuid.UUID) -> bool:
    """Tell whether a journal, owned or not, speaks of the image ``image_uuid`` as its own."""
    return any(facts.get("uuid") == str(image_uuid) for facts in _all_facts(state))


def _all_facts(state: Path) -> Iterator[dict[str, Any]]:
    for path in _paths(state):
        with contextlib.suppress(FileNotFoundError):
            if (orphan := _read(path)) is not None:
                yield orphan.facts


def add(orphan: Orphan, step: str, **data: Any) -> None:
    """Record durably a step of one who deals with a dead manager's journal. Raises OSError."""
    record = json.dumps({"step": step, "time": time.time(), **data}).encode("ascii")
    known = _read(orphan.path)
    lines = orphan.path.read_bytes().splitlines(keepends=True)
    whole = b"".join(lines[: len(known.steps) if known else 0])  # a torn line would hide ours
    with open(orphan.path, "r+b", buffering=0) as file:
        file.truncate(len(whole))
        file.seek(0, os.SEEK_END)
        file.write((b"" if whole.endswith(b"\n") else b"\n") + record + b"\n")
        os.fdatasync(file.fileno())


def forget(orphan: Orphan) -> None:
    """Remove the journal of an operation that was dealt with."""
    orphan.path.unlink(missing_ok=True)
    unfinished.forget(orphan.path)
