"""Recover, with the hooks after what was interrupted: the process that died did not run them.

What they receive is in the journal around the operation (``around.py``) where they had begun;
else it is what recovery has made of the operation.
"""

import asyncio
import contextlib
import datetime
import os
from collections.abc import Awaitable, Callable

from mapsave import errors
from mapsave.config import Config
from mapsave.hooks import around, monitor
from mapsave.image import store
from mapsave.image.store import Entry
from mapsave.operations import (
    answering,
    journal,
    journal_facts,
    recover_restore,
    recover_result,
    results,
)
from mapsave.operations import recover as recovering
from mapsave.operations.journal import Orphan
from mapsave.operations.recover import Recovered
from mapsave.operations.recovered_notes import Line
from mapsave.operations.results import RestoreResult, SaveResult
from mapsave.operations.steps import Step
from mapsave.strict_json import Facts

Told = Callable[[Line], Awaitable[None]]

_TOLD = ("guest", "job", "image", "domain", "uri", "socket", "outcome", "result", "error")
UNTOUCHED = "nothing was in progress any more"
_MOVE = "the hooks of that operation were not run; move the journal away"
_HOOKS_RUN = "its hooks were run"


async def recover(config: Config, *, dry_run: bool = False, told: Told | None = None) -> Recovered:
    """Do as ``operations.recover.recover``, and run the hooks after each operation once.

    An operation that died in its hooks alone is one of the ``operations`` as well. ``told`` gets
    each entry after its hooks. A hook that fails is a warning in the log.
    """
    await answering.check(config.state, writable=True)
    with journal.orphans(config.state, around=True) as orphans:
        left = {orphan.path.name: orphan for orphan in orphans if orphan.problem != journal.BLANK}

        async def tell(line: Line, orphan: Orphan) -> None:
            name = orphan.facts.get("within")
            if not dry_run and not line["error"] and name in left:
                outer = left.pop(name)
                line["warnings"] += await _run_behind(config, outer, line, orphan)
            if told is not None:
                await told(line)

        report = await recovering.recover(config, dry_run=dry_run, told=tell)
        waiting = journal_facts.within(config.state)
        alone = [orphan for name, orphan in left.items() if name not in waiting]
        works = [_alone(config, orphan, dry_run=dry_run) for orphan in alone]
        report["operations"] += await asyncio.gather(*works)
    return report


async def _alone(config: Config, outer: Orphan, *, dry_run: bool) -> Line:
    """Run the hooks of an operation that died in them; return its entry."""
    facts = outer.facts
    line: Line = {
        "operation": facts.get("of"),
        "id": facts.get("operation"),
        "guest": facts.get("guest"),
        "image": facts.get("image"),
        "monitor": None,
        "interrupted_at": facts.get("moment") or f"before_{facts.get('of')}",
        "outcome": f"would be: {_HOOKS_RUN}" if dry_run else _HOOKS_RUN,
        "warnings": [],
        "error": None,
    }
    try:
        _check(outer)
        if not dry_run:
            line["warnings"] += await _run_alone(config, outer)
    except errors.MapsaveError as error:
        line |= {"outcome": None, "error": error.as_dict()}
        if isinstance(error, errors.JournalLost) and not dry_run:
            line["warnings"] += filter(None, [journal.forget(outer)])
    except Exception as error:
        # A journal that is not as we write them must not keep the others from being recovered.
        message = f"{str(outer.path)!r}: unexpected {type(error).__name__}: {error}"
        failed = errors.JournalUnusable(message, hint=_MOVE)
        line |= {"outcome": None, "error": failed.as_dict()}
    return line


def _check(outer: Orphan) -> None:
    """Raise JournalLost where the journal says nothing, JournalUnusable where not what we need."""
    where = str(outer.path)
    if outer.problem is not None:
        raise errors.JournalLost(f"the journal {where!r} is damaged: {outer.problem}", hint=_MOVE)
    if outer.facts.get("of") not in tuple(around.MOMENTS):
        raise errors.JournalUnusable(
            f"the journal {where!r} does not say which operation it belongs to", hint=_MOVE
        )


async def _run_behind(config: Config, outer: Orphan, line: Line, orphan: Orphan) -> list[str]:
    """Run the hooks after an operation that was recovered; return what went wrong."""
    try:
        _check(outer)
        return await _run(config, outer, await _ending(config, outer, line, orphan))
    except errors.JournalLost as error:
        return [error.message, *filter(None, [journal.forget(outer)])]
    except Exception as error:
        return [f"the hooks of {str(outer.path)!r} were not run: {error}"]


async def _run_alone(config: Config, outer: Orphan) -> list[str]:
    facts = outer.facts
    if outer.reached(Step.BEHIND):
        return await _run(config, outer, {})  # reported already, if only to a hook that did not end
    entry = None
    if facts.get("of") == "save":
        entry = await answering.within(config.images, _saved, config, outer)
    if entry is not None:
        return await _run(config, outer, _success(results.recovered_save(entry)))
    return await _run(config, outer, _cancelled(UNTOUCHED, None))


async def _ending(config: Config, outer: Orphan, line: Line, orphan: Orphan) -> Facts:
    """Return what became of an operation that recovery has dealt with, as hooks receive it."""
    outcome, path = str(line["outcome"]), str(line["image"])
    if orphan.kind == "save" and recover_result.holds_guest(outcome):
        entry = await answering.within(path, _entry, path, orphan.facts.get("uuid"))
        return _success(results.gone(line) if entry is None else results.recovered_save(entry))
    if orphan.kind == "restore" and outcome in recover_restore.RESTORED:
        entry = await answering.within(path, _entry, path)
        result = results.recovered_restore(entry, line, outer.facts.get("guest"))
        return {**_success(result), **monitor.facts(config, line["monitor"])}
    return _cancelled(outcome, str(line["interrupted_at"]))


def _success(result: SaveResult | RestoreResult) -> Facts:
    where = {"guest": result.guest, "image": result.image}
    return {"outcome": "success", "result": result.as_dict(), **where}


def _cancelled(outcome: str, step: str | None) -> Facts:
    error = recover_result.interrupted("mapsave", outcome, step)
    return {"outcome": "cancelled", "error": error.as_dict()}


async def _run(config: Config, outer: Orphan, ending: Facts) -> list[str]:
    """Run the hooks after an operation, and forget its journal; cancelled, they are run again.

    Returns what is to be reported of the journal.
    """
    from mapsave.hooks import runner

    facts = {**outer.facts, **ending}
    if ending:
        _, after = around.MOMENTS[str(facts["of"])]
        facts["moment"] = after if ending["outcome"] == "success" else "on_failure"
        with contextlib.suppress(OSError):  # should we die as well: then it is found out again
            journal.add(outer, Step.BEHIND, moment=facts["moment"], **ending)
    moment = facts["moment"]
    document = {"operation": facts.get("operation"), **{key: facts.get(key) for key in _TOLD}}
    more = tuple(map(str, (facts.get("more") or {}).get(moment, ())))
    await runner.run(config.hooks, moment, {**document, "recovered": True}, more)
    return list(filter(None, [journal.forget(outer)]))


def _entry(path: str, uuid: str | None = None) -> Entry | None:
    """Return the good image at ``path``, if it is the one of that ``uuid`` where one is given."""
    try:
        with store.directory(os.path.dirname(path)) as held:
            found = store.entry(held, os.path.basename(path))
    except errors.MapsaveError:
        return None
    if found is None or found.path != path or not recover_result.is_good(found):
        return None
    return found if uuid in (None, str(found.block.uuid) if found.block else None) else None


def _saved(config: Config, outer: Orphan) -> Entry | None:
    """Return the image that a save had made which died between that and its hooks."""
    facts = outer.facts
    path = str(facts.get("image") or config.images / "any")
    try:
        with store.directory(os.path.dirname(path)) as held:
            entries = store.entries(held)
    except errors.MapsaveError:
        return None
    mine = (
        entry
        for entry in entries
        if entry.guest == facts.get("guest") and recover_result.is_saved(entry)
    )
    return next((entry for entry in mine if _is_of(entry, outer)), None)


def _is_of(entry: Entry, outer: Orphan) -> bool:
    """Return whether an image is of that save: by its id, or made since by one that had none."""
    operation = outer.facts.get("operation")
    if entry.metadata.get("operation") != operation:
        return False
    try:
        started = datetime.datetime.fromisoformat(str(entry.metadata.get("started")))
    except ValueError:
        return False
    return operation is not None or started.timestamp() >= float(outer.facts["began"])
