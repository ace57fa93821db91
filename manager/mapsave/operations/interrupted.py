"""An interrupted operation: its journal, what that says of it, and what recovery has met with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mapsave.config import Config
from mapsave.labels.label import Problem
from mapsave.operations import journal
from mapsave.operations.begun import RestoreBegun, SaveBegun
from mapsave.operations.journal import Orphan
from mapsave.operations.steps import Step

Begun = TypeVar("Begun", SaveBegun, RestoreBegun)


@dataclasses.dataclass(frozen=True)
class Interrupted(Generic[Begun]):
    """An operation to recover, and ``problems`` met with; with ``dry_run`` nothing is changed."""

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

    async def outcome(self, finish_or_undo: Callable[[], Awaitable[str]], default: str) -> str:
        """Return what was done, if the journal says so (else ``default``), or do it."""
        if self.orphan.reached(Step.TIDY):
            return self.begun.outcome or default
        outcome = await finish_or_undo()
        if not self.dry_run:
            # Where the disk is full, the partial image that fills it goes next.
            with contextlib.suppress(OSError):
                journal.add(self.orphan, Step.TIDY, outcome=outcome)
        return outcome
