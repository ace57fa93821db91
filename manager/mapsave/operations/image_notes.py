"""Notes about images in the state directory, by the uuid that an image and its copies have.

What is noted also holds for images that cannot be written. A note is a file of the uuid's name.
"""

import contextlib
import json
import logging
import os
import time
import uuid as uuids
from pathlib import Path

from mapsave.operations import locks

_log = logging.getLogger(__name__)


class Notes:
    """The notes of one kind, in a directory of that name."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def directory(self, state: Path) -> Path:
        """Return where they are."""
        return state / self._kind

    def path(self, state: Path, uuid: uuids.UUID) -> Path:
        """Return the file of a note."""
        return self.directory(state) / str(uuid)

    def all(self, state: Path) -> frozenset[uuids.UUID]:
        """Return the uuids of all images that are noted. Raises OSError."""
        found = set()
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory(state)):
                with contextlib.suppress(ValueError):
                    found.add(uuids.UUID(name))
        return frozenset(found)

    def known(self, state: Path) -> frozenset[uuids.UUID]:
        """Return what ``all`` does; nothing, with a warning, where the notes cannot be read."""
        try:
            return self.all(state)
        except OSError as error:
            _log.warning("cannot read %s: %s", self.directory(state), error.strerror)
            return frozenset()

    def has(self, state: Path, uuid: uuids.UUID) -> bool:
        """Return whether the image of that uuid is noted. Raises OSError."""
        try:
            os.stat(self.path(state, uuid))
        except FileNotFoundError:
            return False
        return True

    def add(self, state: Path, path: str, uuid: uuids.UUID, what: str) -> None:
        """Write a note durably with its directory; one that may not be durable is taken back.

        Raises OSError, NotPermitted, ConfigMissing.
        """
        was_noted = self.has(state, uuid)
        try:
            directory = locks.state_directory(state, self._kind)
            note = {"image": os.path.realpath(path), "state": what, "time": time.time()}
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with open(os.open(self.path(state, uuid), flags, 0o600), "w", encoding="ascii") as file:
                file.write(json.dumps(note) + "\n")
                file.flush()
                os.fsync(file.fileno())
            locks.sync_directory(directory)
        except OSError:
            if not was_noted:
                with contextlib.suppress(OSError):
                    self.path(state, uuid).unlink(missing_ok=True)
            raise

    def remove(self, state: Path, uuid: uuids.UUID) -> None:
        """Remove a note durably, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.path(state, uuid).unlink()
            locks.sync_directory(self.directory(state))
