"""The step journal: each step of an operation is on stable storage before the step is taken.

One file an operation, in the state directory (``journal_file.py``). Its owner holds it locked; it
is removed when nothing is left to undo. What is found unlocked belongs to a manager that died, and
is what ``mapsave recover`` works from. A damaged one is kept, under another name, once it was dealt
with.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import fcntl
import fnmatch
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Unpack

import msgspec

from mapsave import blocking, errors, file_lock, shielded
from mapsave.monitor import process
from mapsave.operations import answering, journal_file, locks
from mapsave.operations.begun import Begun, Noted
from mapsave.operations.steps import Step

_log = logging.getLogger(__name__)

BLANK = "it is empty"
_UNREADABLE = "it cannot be read"
FINISHED = "already finished; only its journal was left"
_AROUND = "around"


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who sees the steps of an operation, once they are on stable storage, and its id there."""

    operation: str
    saw: Callable[[str, Mapping[str, object]], None]


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
    """Return the id of the operation that this task is of; None where no one gave it one."""
    watch = _watch.get()
    return watch.operation if watch is not None else None


# What the operations of this process have come to, by the paths of their journals: the facts of
# the steps so far, and the last ``step``. In memory, for the storage of the journals may hang.
_unfinished: dict[str, dict[str, object]] = {}


def unfinished() -> list[dict[str, object]]:
    """Return the operations under way, or with something left to recover. Safe in any thread."""
    return [
        {
            "operation": "hooks" if facts.get("kind") == _AROUND else facts.get("kind"),
            "guest": facts.get("guest"),
            "image": os.path.join(str(facts["directory"]), str(facts["name"]))
            if "directory" in facts and "name" in facts
            else facts.get("image"),
            "step": facts.get("step"),
            "pid": facts.get("pid"),
            "journal": path,
        }
        for path, facts in list(_unfinished.items())
    ]


class JournalUnwritable(OSError):
    """A step could not be recorded; ``filename`` is the journal's path."""


class Journal:
    """The journal of one running operation."""

    def __init__(self, fd: int, path: Path, watch: Watch | None) -> None:
        self.writer = journal_file.Writer(fd)
        self.path = path
        self.state = path.parent.parent  # the state directory
        self.warnings: list[str] = []
        self.is_settled = True  # nothing is left to undo
        self._watch = watch
        self._hangs: blocking.Hangs | None = None

    async def step(self, step: Step, **noted: Unpack[Noted]) -> None:
        """Record that ``step`` is about to be taken, durably; cancelled, wait for that.

        Raises JournalUnwritable, as well where the storage hangs: at once the next time.
        """
        data = msgspec.to_builtins(noted)
        await self.recorded(step, data)
        self.show(step, data)

    async def recorded(self, step: Step, data: Mapping[str, object]) -> None:
        """Do as ``record`` off the event loop, within a limit, and as ``step`` where that fails."""
        try:
            if self._hangs is not None:
                raise self._hangs
            await shielded.in_time(self.record, step, data)
        except blocking.Hangs as error:
            self._hangs = error
            raise JournalUnwritable(error.errno, error.strerror, str(self.path)) from None

    def step_for(self, loop: asyncio.AbstractEventLoop, step: Step, **noted: Unpack[Noted]) -> None:
        """Do as ``step``, in another thread than the one of ``loop``, which is the watcher's."""
        data = msgspec.to_builtins(noted)
        self.record(step, data)
        loop.call_soon_threadsafe(self.show, step, data)

    def record(self, step: Step, data: Mapping[str, object]) -> None:
        """Bring a step to stable storage. Blocks. Raises JournalUnwritable."""
        try:
            self.writer.write(step, data)
        except OSError as error:
            raise JournalUnwritable(error.errno, error.strerror, str(self.path)) from None
        path = str(self.path)
        _unfinished[path] = {**_unfinished.get(path, {}), **data, "step": str(step)}

    def show(self, step: Step, data: Mapping[str, object]) -> None:
        """Show a recorded step to the watcher, which is of the event loop's thread."""
        if self._watch is not None:
            self._watch.saw(step, data)

    def warn(self, doing: str, error: OSError) -> None:
        """Report that the journal failed at an operation that has come to its end."""
        words = f"cannot {doing} the journal {str(self.path)!r}: {error.strerror}"
        self.warnings.append(words)
        _log.warning("%s", words)

    def unsettled(self) -> None:
        """Keep the file at the end: something is left for ``mapsave recover``."""
        self.is_settled = False


@contextlib.asynccontextmanager
async def operation(state: Path, kind: str, begun: Begun) -> AsyncIterator[Journal]:
    """Begin the journal of an operation of ``kind`` with what recovery must know of it.

    The file goes at the end, unless the operation said ``unsettled``. Raises Refused where the
    journal cannot be written, BadDirectory where its storage hangs: without one nothing is begun.
    """
    facts = msgspec.to_builtins(begun)
    async with _written(state, kind, facts) as (journal, data):
        journal.show(Step.BEGIN, data)
        yield journal


@contextlib.asynccontextmanager
async def around(state: Path, facts: Mapping[str, object]) -> AsyncIterator[Journal]:
    """Begin the journal of the hooks around an operation, whose own names it as ``within``.

    No one watches its steps. Raises Refused, BadDirectory.
    """
    async with _written(state, _AROUND, facts) as (journal, _):
        token = _within.set(journal.path.name)
        try:
            yield journal
        finally:
            _within.reset(token)


@contextlib.asynccontextmanager
async def _written(
    state: Path, kind: str, facts: Mapping[str, object]
) -> AsyncIterator[tuple[Journal, dict[str, object]]]:
    """Begin and end a journal off the event loop; a disk may take seconds for either."""
    entering = shielded.entered(
        _owned(state, kind, facts),
        lambda left: left[0].warn("remove", blocking.hangs(blocking.ANSWER)),
        is_used=False,
    )
    async with contextlib.AsyncExitStack() as stack:
        with answering.reported(state):
            found = await stack.enter_async_context(entering)
        yield found


@contextlib.contextmanager
def _owned(
    state: Path, kind: str, facts: Mapping[str, object]
) -> Iterator[tuple[Journal, dict[str, object]]]:
    """Make a journal, which ends with the context; yield it with the data of its first step."""
    directory = locks.state_directory(state, "journal")
    begun = {"kind": kind, "manager_pid": os.getpid(), "boot": process.boot_id(), **facts}
    watch, within = _watch.get(), _within.get()
    if watch is not None:
        begun["operation"] = watch.operation
    if within is not None:
        begun["within"] = within
    with contextlib.ExitStack() as stack:
        with errors.explained(
            f"write the journal in {str(directory)!r}",
            directory,
            os.R_OK | os.W_OK | os.X_OK,
            otherwise=errors.Refused,
            hint="free some space there, or set 'state:' in the configuration",
        ):
            path, fd = _create(directory, kind)
            journal = Journal(fd, path, None if kind == _AROUND else watch)
            stack.callback(journal.writer.close)
            stack.callback(_end, journal, path)
            journal.record(Step.BEGIN, begun)
            locks.sync_directory(directory)
        yield journal, begun


def _create(directory: Path, kind: str) -> tuple[Path, int]:
    """Make a journal and lock it: one that ``remove_empty`` did not take for a dead manager's."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    while True:
        path = directory / f"{kind}-{uuid.uuid4()}{journal_file.SUFFIX}"
        fd = os.open(path, flags, 0o600)
        file_lock.exclusive(fd)  # its holder looks at it for a moment only
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)


def _end(journal: Journal, path: Path) -> None:
    if not journal.is_settled:
        return
    try:
        path.unlink(missing_ok=True)
        _unfinished.pop(str(path), None)
    except OSError as error:
        journal.warn("remove", error)
        with contextlib.suppress(OSError):  # recovery then knows that there is nothing to do
            journal.record(Step.TIDY, {"outcome": FINISHED})


@dataclasses.dataclass(frozen=True)
class Orphan:
    """The journal of an operation whose manager died: its facts, and the steps it had come to.

    ``is_unsure``: further steps may have been taken, which the journal says no more. ``problem``:
    why it says nothing that can be used, None where it does.
    """

    path: Path
    kind: str
    facts: journal_file.Facts
    steps: tuple[str, ...]
    is_damaged: bool = False
    is_unsure: bool = False
    problem: str | None = None

    @property
    def last(self) -> str | None:
        """The step that was taken, or about to be, when the manager died; None if not known."""
        return self.steps[-1] if self.steps else None

    def reached(self, step: Step) -> bool:
        """Return whether ``step`` was recorded."""
        return step in self.steps

    def may_have_reached(self, step: Step) -> bool:
        """Return whether ``step`` was recorded, or may have been in what cannot be read."""
        return self.is_unsure or self.reached(step)

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the host is up since; if not, pids are void, and unsynced data may be lost."""
        return self.facts.get("boot") == process.boot_id()


@contextlib.contextmanager
def orphans(state: Path, *, around: bool = False) -> Iterator[list[Orphan]]:
    """Yield the journals without an owner, locked: those of operations, or those ``around`` them.

    The caller removes each with ``forget`` once it is dealt with. Blank ones are among them:
    whether their managers died before the first step, only the partial images show.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for path in paths(state):
            if path.name.startswith(f"{_AROUND}-") != around:
                continue
            with contextlib.ExitStack() as lock:
                try:
                    is_locked = lock.enter_context(_locked(path))
                except OSError as error:
                    found.append(_unusable(path, f"{_UNREADABLE}: {error.strerror}"))
                    continue
                if is_locked:
                    orphan = read(path) or _unusable(path, BLANK)
                    found.append(orphan)
                    stack.enter_context(lock.pop_all())
        yield found


def remove_empty(state: Path, is_blank: Callable[[Orphan], bool]) -> None:
    """Remove the journals in which nothing is where ``is_blank`` says that nothing was begun."""
    for path in paths(state):
        with contextlib.suppress(OSError), _locked(path) as is_locked:
            if is_locked and read(path) is None and is_blank(_unusable(path, BLANK)):
                path.unlink(missing_ok=True)


def _unusable(path: Path, problem: str) -> Orphan:
    return Orphan(path, _kind(path), {}, (), is_damaged=True, is_unsure=True, problem=problem)


def paths(state: Path) -> list[Path]:
    """Return the journals of a state directory, owned or not, in the order of their names.

    Raises NotPermitted, ConfigMissing: who cannot look does not know that there are none.
    """
    directory = state / "journal"
    with locks.state_errors(f"read the journals in {str(directory)!r}", directory):
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(directory / each for each in fnmatch.filter(names, journal_file.PATTERN))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a journal; yield False where its owner lives, or has removed it in the meantime."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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


def read(path: Path) -> Orphan | None:
    """Return what a journal says; None where its manager died before its first step."""
    try:
        known = journal_file.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _unusable(path, f"{_UNREADABLE}: {error.strerror}")
    if known.is_blank:
        return None
    return Orphan(
        path,
        str(known.facts.get("kind") or _kind(path)),
        known.facts,
        known.steps,
        is_damaged=known.is_damaged,
        is_unsure=known.is_unsure,
        problem=None if known.facts else "none of its lines can be read",
    )


def _kind(path: Path) -> str:
    return path.name.partition("-")[0]


def add(orphan: Orphan, step: Step, **data: object) -> None:
    """Record durably a step of one who deals with a dead manager's journal. Raises OSError."""
    if orphan.problem is None:
        journal_file.append(orphan.path, step, data)


def forget(orphan: Orphan) -> str | None:
    """Remove a journal that was dealt with, or keep a damaged one; return a warning, or None."""
    kept = orphan.path.with_name(orphan.path.name + journal_file.DAMAGED)
    try:
        if not orphan.is_damaged:
            orphan.path.unlink(missing_ok=True)
            _unfinished.pop(str(orphan.path), None)
            return None
        orphan.path.rename(kept)
        _unfinished.pop(str(orphan.path), None)
    except OSError as error:
        doing = "rename the damaged" if orphan.is_damaged else "remove the"
        return f"cannot {doing} journal {str(orphan.path)!r}: {error.strerror}"
    return f"the journal was damaged; it was kept as {str(kept)!r}: inspect it, then remove it"
