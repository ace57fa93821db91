"""One operation of the service while it is under way, and what is reported about it."""

import asyncio
import contextlib
import dataclasses
import secrets
import time

from mapsave import errors
from mapsave.history.rows import Record
from mapsave.history.states import ENDED, State
from mapsave.migration.progress import Progress
from mapsave.service.course import Course
from mapsave.strict_json import Facts

ID_BYTES = 6
# From this step of a save on its image is about to be valid: it is finished, not cancelled.
_COMMIT = "commit"


@dataclasses.dataclass
class Operation:
    """An operation under way. ``revision`` counts its changes, for those who wait for the next."""

    kind: str
    user: str
    request: Facts
    guest: str | None = None
    job: str | None = None
    image: str | None = None
    parent: str | None = None
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(ID_BYTES))
    state: State = State.PENDING
    created: float = dataclasses.field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    step: str | None = None
    progress: Progress | None = None
    course: Course = dataclasses.field(default_factory=Course, repr=False)
    result: Facts | None = None
    error: errors.ErrorDict | None = None
    revision: int = 0
    task: asyncio.Task[None] | None = dataclasses.field(default=None, repr=False)
    cancel_requested: bool = False
    has_begun: bool = False
    _changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event, repr=False)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDED

    def change(self, **fields: object) -> None:
        """Set some fields, and wake those who wait for a change."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def note_step(self, step: str) -> None:
        """Note a step of the step journal."""
        if step == _COMMIT and self.state == State.RUNNING:
            self.change(step=step, state=State.COMMITTING)
        else:
            self.change(step=step)

    async def wait_change(self, since: int, timeout: float) -> None:
        """Return once the revision is not ``since`` any more, or after ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.revision == since:
                    await self._changed.wait()

    async def wait_end(self, timeout: float | None = None) -> None:
        """Return once it has ended, or after ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.is_over:
                    await self._changed.wait()

    def record(self) -> Record:
        """Return it as the history keeps it."""
        names = (each.name for each in dataclasses.fields(Record))
        return Record(**{name: getattr(self, name) for name in names})

    def as_dict(self) -> Facts:
        """Return it as the API shows it."""
        progress = None if self.progress is None else self.progress.as_dict()
        return {**self.record().as_dict(), "progress": progress, "revision": self.revision}
