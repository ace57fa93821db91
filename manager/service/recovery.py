"""After a start: what a service that died had under way is finished or undone, and told so."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.image import store
from manager.operations import images, recover, recover_save
from manager.service import operation as states

if TYPE_CHECKING:
    from manager.jobs.journal import Journal, Record
    from manager.service.service import Service

_log = logging.getLogger(__name__)

_AGAIN = 30.0  # seconds until what could not be dealt with is tried again
_WHOLE = "committed"  # the step from which on a save's image is valid under its name


class Recovery:
    """Recovers until nothing is left; what cannot be dealt with yet is tried again."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self._service = service
        self._journal = journal
        self._one_at_a_time = asyncio.Lock()
        self._interrupted: list[Record] = []
        self.is_done = False

    async def begin(self) -> None:
        """Note what was under way when the service before us ended."""
        self._interrupted = await self._journal.unfinished()

    def speaks_of(self, operation: str) -> bool:
        """Tell whether an operation is still to be recovered."""
        return any(record.id == operation for record in self._interrupted)

    async def run(self) -> None:
        """Recover, again and again, until nothing is left."""
        while True:
            done = await self.once()
            left = [line for line in done["operations"] if line["error"]]
            if not left:
                self.is_done = True
                return
            for line in left:
                _log.warning(
                    "recovery of the %s of %s: %s; tried again in %g s",
                    *(line["operation"], line["guest"], line["error"]["message"], _AGAIN),
                )
            await asyncio.sleep(_AGAIN)

    async def once(self) -> dict[str, Any]:
        """Recover once; return what ``mapsave recover --json`` prints."""
        async with self._one_at_a_time:
            done = await recover.recover(self._service.config)
            outcomes = {line["id"]: line for line in done["operations"] if line["id"]}
            for line in done["operations"]:
                if line["outcome"]:
                    words = (line["operation"], line["guest"], line["outcome"])
                    _log.info("recovered the %s of %s: %s", *words)
            still = []
            for record in self._interrupted:
                line = outcomes.get(record.id)
                if line is not None and line["error"]:
                    still.append(record)
                else:
                    await self._settle(record, line["outcome"] if line else None)
            self._interrupted = still
            return done

    async def _settle(self, record: Record, outcome: str | None) -> None:
        """Put into the journal what became of an operation of the service before us."""
        image = await asyncio.to_thread(self._image, record) if record.kind == "save" else None
        if image is not None:
            await self._end(record, states.DONE, result={**image, "recovered": True})
            return
        if outcome is not None and outcome.startswith(recover_save.COMMITTED):
            await self._end(record, states.DONE, result={"recovered": True, "outcome": outcome})
            return
        error = errors.Interrupted(
            f"the service ended meanwhile; {outcome or 'nothing was under way any more'}",
            hint="begin it again",
            step=record.step,
        )
        await self._end(record, states.CANCELLED, error=error.as_dict())

    async def _end(self, record: Record, state: str, **outcome: Any) -> None:
        await self._journal.end(record.id, state, **outcome)
        self._service.hub.tell(
            "operation", await self._service.operations.get(record.id), record.id
        )

    def _image(self, record: Record) -> dict[str, Any] | None:
        """Return the image that a save has committed, by the id of the operation in it."""
        config = self._service.config
        if not config.images.is_dir():
            return None
        with store.directory(config.images) as held:
            for entry in store.entries(held):
                ours = entry.metadata.get("operation") == record.id
                if ours and entry.state in ("saved", "restored"):
                    line = images.line(entry)
                    return {key: line[key] for key in ("image", "guest", "format", "state")}
        return None
