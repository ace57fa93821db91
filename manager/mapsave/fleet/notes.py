"""What the agent has begun, on stable storage before it asks for it.

The host's service knows its operations, so nothing here is needed as long as its history is whole.
A note says what may be concluded where the service does not know an operation: with the ``marker``,
the operation that the service had begun last when the note was made, still known, the history is
whole, and the operation was never begun.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mapsave import errors, typed

_NAME = re.compile(r"[0-9a-f]{12}\.json")


class Note(msgspec.Struct, frozen=True):
    """One operation: the task that it is of, and what its slot was for.

    ``marker`` is the id of another operation, "" where there was none, None where that is unknown.
    """

    task: str
    kind: str
    limit: float
    target: str | None = None
    marker: str | None = None


class Notes:
    """The notes in a directory of the agent's own, one file for each operation."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, operation: str, note: Note) -> None:
        """Note an operation that is about to begin: on stable storage when this returns.

        Blocks. Raises OSError.
        """
        path = self._directory / f"{operation}.json"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(msgspec.json.encode(note))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._sync()

    def forget(self, operation: str) -> None:
        """Remove a note, if there is one. Blocks. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            (self._directory / f"{operation}.json").unlink()

    def get(self, operation: str) -> Note | None:
        """Return the note of an operation; of one that is damaged, one without a marker.

        Blocks. Raises OSError.
        """
        try:
            raw = (self._directory / f"{operation}.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            return typed.convert(json.loads(raw), Note)
        except (ValueError, RecursionError):
            return Note("", "", 0.0)

    def all(self) -> Iterator[tuple[str, uuid.UUID, Note]]:
        """Yield operation, task and note of those that name their task. Blocks. Raises OSError."""
        for path in sorted(self._directory.iterdir()):
            if _NAME.fullmatch(path.name) and (note := self.get(path.stem)) is not None:
                with contextlib.suppress(ValueError):
                    yield path.stem, uuid.UUID(note.task), note

    def _sync(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def opened(state: Path, host: str) -> Iterator[Notes]:
    """Open the notes below ``state``, which is made if it is missing, for one agent alone.

    Raises AgentRunning where another agent has them, ConfigError where they cannot be written.
    """
    import fcntl

    directory = state / host
    try:
        (directory / "begun").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.ConfigError(
            f"cannot use {str(directory)!r}, the agent's own directory: {error.strerror}",
            hint="'fleet: {state: …}' of the configuration names it",
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.AgentRunning(
                f"another agent of the host {host!r} is running here",
                hint="there is one agent for each host",
            ) from None
        yield Notes(directory / "begun")
    finally:
        os.close(lock)
