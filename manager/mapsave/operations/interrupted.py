"""An interrupted operation: its journal, what that says of it, and what recovery has met with."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from mapsave.config import Config
from mapsave.labels.label import Problem
from mapsave.operations.begun import RestoreBegun, SaveBegun
from mapsave.operations.journal import Orphan

Begun = TypeVar("Begun", SaveBegun, RestoreBegun)


@dataclasses.dataclass(frozen=True)
class Interrupted(Generic[Begun]):
    """An operation to recover; with ``dry_run`` nothing is changed.

    ``problems``: what went wrong though the operation was dealt with.
    """

    config: Config
    orphan: Orphan
    begun: Begun
    dry_run: bool
    problems: list[Problem] = dataclasses.field(default_factory=list)

    @property
    def process(self) -> tuple[int, int] | None:
        """Pid and start time of the QEMU; None where it is not in our sight."""
        pid, started = self.begun.pid, self.begun.process_started
        return None if pid is None or started is None else (pid, started)

    def warn(self, text: str) -> None:
        """Note a problem that no further recovery can put right."""
        self.problems.append(Problem(text, recoverable=False))
