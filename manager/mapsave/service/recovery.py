"""What a service that died had under way, and what an operation left, is finished or undone."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from mapsave import blocking, errors, units
from mapsave.config import Config
from mapsave.history.history import History
from mapsave.history.rows import Record
from mapsave.history.states import State
from mapsave.hooks import recover
from mapsave.image import store
from mapsave.image.store import Entry
from mapsave.operations import (
    answering,
    journal_facts,
    pending,
    recover_restore,
    recover_result,
    recovered_notes,
    restored_notes,
    results,
)
from mapsave.operations.recover import Recovered
from mapsave.operations.recovered_notes import Line
from mapsave.service.registry import Operations
from mapsave.service.slots import Slots
from mapsave.strict_json import Facts

_log = logging.getLogger(__name__)

# Seconds until what could not be dealt with is tried again: the first time, and at most.
_SOON, _LATER = 1.0, 30.0
_PATIENCE = 2.0  # seconds that the image directory has to answer
# The last steps of a restore: the guest is its user's.
_HANDED_OVER = ("mark", "run")


class Recovery:
    """Recovers at the start, and whenever an operation has left something to it.

    What cannot be dealt with yet is tried again. ``config`` returns the configuration in force.
    """

    def __init__(
        self, operations: Operations, slots: Slots, history: History, config: Callable[[], Config]
    ) -> None:
        self._operations = operations
        self._save_slots = slots
        self._history = history
        self._config = config
        self._one_at_a_time = asyncio.Lock()
        self._dealt_with: dict[str, Line] = {}
        self._slots: dict[str, contextlib.ExitStack] = {}
        self._needed = asyncio.Event()
        # Whether something is to be recovered; None until that was looked at for the first time.
        self.is_needed: bool | None = None
        self.problems: list[str] = []

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to recover."""
        return self.is_needed is False

    @property
    def _interrupted(self) -> dict[str, Record]:
        return self._operations.interrupted

    async def begin(self) -> None:
        """Note what was under way when the service before us ended."""
        self._interrupted.update({each.id: each for each in await self._history.unfinished()})
        if self._interrupted:
            self.is_needed = True
        await self._hold_slots()

    async def _hold_slots(self) -> None:
        """Hold the slots of the saves that QEMU may still be doing."""
        under_way = [e for e in self._interrupted.values() if e.state != State.PENDING]
        saves = [each for each in under_way if each.kind == "save"]
        device = await self._device() if saves else 0
        for each in saves:
            stack = self._slots[each.id] = contextlib.ExitStack()
            stack.enter_context(self._save_slots.hold(device))

    async def _device(self) -> int:
        """Return the file system of the images; 0 where it is unknown."""
        look = blocking.call(os.stat, self._config().images)
        try:
            return (await asyncio.wait_for(look, _PATIENCE)).st_dev
        except (OSError, TimeoutError):
            return 0  # a server that is gone must not keep the service from starting

    def _give_slot_back(self, operation: str) -> None:
        if (stack := self._slots.pop(operation, None)) is not None:
            stack.close()

    def is_pending(self, operation: str) -> bool:
        """Return whether an operation is still to be recovered."""
        return operation in self._interrupted

    async def ended(self, operation: str) -> None:
        """Recover again where an operation that has ended left its step journal behind."""
        state = self._config().state
        try:
            if operation not in await answering.within(state, journal_facts.operations, state):
                return
        except (errors.MapsaveError, OSError) as error:
            # Whether it has is found out by trying.
            _log.error("the step journals cannot be read: %s", error)
        else:
            _log.warning("operation %s needs recovery", operation)
        self.is_needed = True
        self._needed.set()

    async def run(self) -> None:
        """Recover until nothing is left, each time that something is; forever."""
        while True:
            await self._until_done()
            await self._needed.wait()

    async def _until_done(self) -> None:
        pause = _SOON
        while not self.is_done:
            words = units.format_duration(pause)
            try:
                done = await self.once()
            except (errors.MapsaveError, OSError) as error:
                # The history cannot be written, the image directory is gone: that may pass.
                self.is_needed = True
                _log.error("recovery: %s; retrying in %s", error, words)
            except Exception:
                self.is_needed = True
                _log.exception("recovery: a bug in mapsave; retrying in %s", words)
            else:
                for line in done["operations"]:
                    if line["error"]:
                        _log.warning(
                            "recovery of the %s of %s: %s; retrying in %s",
                            line["operation"],
                            line["guest"],
                            line["error"]["message"],
                            words,
                        )
            if not self.is_done:
                await asyncio.sleep(pause)
            pause = min(pause * 2, _LATER)

    async def once(self) -> Recovered:
        """Recover once; return what ``mapsave recover --json`` prints. Raises Refused, OSError."""
        async with self._one_at_a_time:
            config = self._config()
            await answering.check(config.state, writable=True)
            # What is left from now on may come too late for this time.
            self._needed.clear()
            await self._settle_others()
            found = await answering.within(config.state, pending.pending, config.state)
            if any(not each["in_progress"] for each in found):
                self.is_needed = True
            done = await recover.recover(config, told=self._told)
            await self._settle_others()
            self.problems = [
                f"the damaged journal {path!r} was kept: inspect it, then remove it"
                for path in done["damaged"]
            ] + done["warnings"]
            has_failed = any(line["error"] for line in done["operations"])
            if self._interrupted or has_failed:
                self._needed.set()
            self.is_needed = self._needed.is_set()
            return done

    async def _told(self, line: Line) -> None:
        """Tell what was done about one operation, and settle it."""
        if line["error"]:
            # It may last for days, and must not keep the other guests from being saved.
            self._give_slot_back(str(line["id"]))
            return
        words = (line["operation"], line["guest"], line["outcome"])
        _log.info("recovered the %s of %s: %s", *words)
        record = self._interrupted.get(str(line["id"]))
        if record is None:
            return  # the command line's own, or one whose end we knew
        self._dealt_with[record.id] = line
        try:
            await self._settle(record, await self._images())
        except errors.MapsaveError as error:
            # Its step journal is gone, so it is one of the others when this is tried again.
            _log.error("operation %s: its result could not be recorded yet: %s", record.id, error)

    async def _settle_others(self) -> None:
        """Settle those that no step journal speaks of: they waited, or had just ended."""
        state = self._config().state
        spoken_of = await answering.within(state, journal_facts.operations, state)
        others = [each for each in self._interrupted.values() if each.id not in spoken_of]
        if not others:
            return
        try:
            images = await self._images()
        except errors.BadDirectory as error:
            _log.error("recovery: %s", error)  # the next time; others do not wait for it
            return
        for record in others:
            await self._settle(record, images)

    async def _settle(self, record: Record, images: dict[str, Entry]) -> None:
        """Put into the history what became of an operation of the service before us."""
        state = self._config().state
        line = self._dealt_with.get(record.id)
        if line is None:  # by the command, or a service that died before it could settle this
            line = await answering.within(state, recovered_notes.read, state, record.id)
        result = self._result(record, line, images)
        operations = self._operations
        if result is not None:
            await operations.settle(record, State.DONE, result=result)
        else:
            outcome = str(line["outcome"]) if line else recover.UNTOUCHED
            error = recover_result.interrupted("the service", outcome, record.step)
            await operations.settle(record, State.CANCELLED, error=error.as_dict())
        self._give_slot_back(record.id)
        self._dealt_with.pop(record.id, None)
        await answering.noted(recovered_notes.remove, state, record.id)

    async def _images(self) -> dict[str, Entry]:
        """Return the good images, by their paths and by the ids of the operations they are of."""
        directory = self._config().images

        def look() -> dict[str, Entry]:
            if not directory.is_dir():
                return {}
            with store.directory(directory) as held:
                entries = store.entries(held, restored=restored_notes.noted(self._config().state))
                good = [each for each in entries if recover_result.is_good(each)]
            return {each.path: each for each in good} | {
                str(each.metadata["operation"]): each
                for each in good
                if each.metadata.get("operation") and recover_result.is_saved(each)
            }

        return await answering.within(directory, look)

    def _result(self, record: Record, line: Line | None, images: dict[str, Entry]) -> Facts | None:
        """Return the result of what has reached its end after all; None for the others."""
        outcome = str(line["outcome"]) if line else ""
        if record.kind == "save":
            if (entry := images.get(record.id)) is not None:
                return results.recovered_save(entry).as_dict()
            if line is not None and recover_result.holds_guest(outcome):
                return results.gone(line).as_dict()
        if record.kind == "restore":
            path = str(line["image"] if line else self._config().images / str(record.image))
            entry = images.get(os.path.realpath(path))
            is_clone = "clone" in record.request  # of which the image does not say so
            used = entry is not None and (is_clone or entry.state is store.EntryState.RESTORED)
            over = line is None and record.step in _HANDED_OVER and used
            if over or outcome in recover_restore.RESTORED:
                return results.recovered_restore(entry, line, record.guest).as_dict()
        return None
