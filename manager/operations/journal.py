"""The journal: each step of an operation is on stable storage before the step is taken.

One file an operation, in the state directory: JSON lines, the first of which says what the
operation is about. Its owner holds it locked; it is removed when nothing is left to undo. What is
found unlocked belongs to a manager that died, and is what ``mapsave recover`` works from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from manager.image import image
from manager.operations import locks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIX = ".jsonl"


class Journal:
    """The journal of one running operation."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._settled = False

    def step(self, step: str, **data: Any) -> None:
        """Record that ``step`` is about to be taken, durably."""
        record = {"step": step, "time": time.time(), **data}
        os.write(self._fd, json.dumps(record).encode("ascii") + b"\n")
        os.fdatasync(self._fd)

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
    """
    directory = locks.state_directory(state, "journal")
    path = directory / f"{kind}-{uuid.uuid4()}{_SUFFIX}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal = Journal(fd)
        journal.settled()
        journal.step("begin", kind=kind, manager_pid=os.getpid(), **facts)
        _sync_directory(directory)
        yield journal
        if journal.is_settled:
            path.unlink()
    except BaseException:
        if journal.is_settled:
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


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


@contextlib.contextmanager
def orphans(state: Path) -> Iterator[list[Orphan]]:
    """Yield the journals without an owner, locked so that nobody else works on them meanwhile.

    The caller removes each with ``forget`` once it is dealt with.
    """
    directory = state / "journal"
    with contextlib.ExitStack() as stack:
        found = []
        for path in sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else []:
            orphan = stack.enter_context(_locked(path))
            if orphan is not None:
                found.append(orphan)
        yield found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Orphan | None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None  # its owner lives
            return
        yield _read(path)
    finally:
        os.close(fd)


def _read(path: Path) -> Orphan | None:
    """Read a journal; its last line may be torn, and was then not acted upon."""
    facts: dict[str, Any] = {}
    steps = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        steps.append(str(record.pop("step")))
        record.pop("time", None)
        facts.update(record)
    if not steps:
        return None  # died before its first step was whole: nothing was touched
    return Orphan(path, str(facts.get("kind", "")), facts, tuple(steps))


def partial_images(state: Path) -> set[str]:
    """Return the paths of the partial images that journals speak of, owned or not."""
    found = set()
    directory = state / "journal"
    for path in directory.glob(f"save-*{_SUFFIX}") if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if (orphan := _read(path)) is not None and "directory" in orphan.facts:
                name = image.partial_name(str(orphan.facts["name"]))
                found.add(os.path.join(str(orphan.facts["directory"]), name))
    return found


def forget(orphan: Orphan) -> None:
    """Remove the journal of an operation that was dealt with."""
    orphan.path.unlink(missing_ok=True)
