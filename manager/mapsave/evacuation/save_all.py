"""Save every guest before the host goes down: highest priority first, as many as the deadline
allows.

Read ``save_all`` and the ``Run`` of ``run.py`` from top to bottom: look at all guests while they
run, write down what is about to be saved, then begin one save after the other as the disk takes
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from mapsave import config as configuration
from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.evacuation import forecast, guests, record, save_run, save_targets
from mapsave.evacuation.save_run import Request, Saver
from mapsave.evacuation.save_targets import Target
from mapsave.hooks import around
from mapsave.image import store
from mapsave.jobs import outcome
from mapsave.migration.progress import Report, silent
from mapsave.operations import save_request

_COUNTED = ("saved", "failed", "no_time", "not_running", "skipped")


async def save_all(
    config: Config, request: Request, report: Report = silent, *, saver: Saver | None = None
) -> dict[str, Any]:
    """Save the guests, and return the summary that ``mapsave save-all --json`` prints.

    One guest's failure is a line of the summary. ``saver`` saves one guest. Cancelled, the saves
    under way put their guests back first; what is committed stays in the record.

    Raises UnknownGuest, UsageError, Unsupported, Unreachable or NotPermitted where it is not known
    which guests there are, Busy, and Refused where the record cannot be written: nothing is touched
    then.
    """
    started = asyncio.get_running_loop().time()
    patience = save_targets.patience_for(request.deadline)
    found, unreached = await guests.chosen(config, request.names, request.libvirt, patience)
    away = [_away(request.libvirt, unreached)] if request.libvirt and unreached else []
    if request.dry_run:
        lines = [*await save_targets.examined(config, found, request.then, None), *away]
        rate = await asyncio.to_thread(forecast.known_rate, config)
        forecast.foretell(lines, request.deadline, rate)
        return {**_summary(config, request, lines, started), "rate_bytes_per_s": rate}
    with record.hold(config.state, set_aside=True) as kept:
        lines = await save_targets.examined(config, found, request.then, request.deadline)
        lines += away
        saved_before = {each.guest: each.image for each in kept.entries}
        for line in lines:
            line.image = line.image or saved_before.get(line.name)
        saves = save_run.Run(config, request, lines, kept, saver or _saver(config), report, started)
        await saves.to_the_end()
        return {**_summary(config, request, lines, started), "rate_bytes_per_s": saves.pace.rate}


async def interruptible(
    config: Config, request: Request, report: Report = silent, *, saver: Saver | None = None
) -> dict[str, Any]:
    """Do as ``save_all``; cancelled, name the guests already saved, which are not resumed.

    Raises Interrupted in place of a cancellation.
    """
    try:
        return await save_all(config, request, report, saver=saver)
    except asyncio.CancelledError:
        saved = [entry.guest for entry in record.load(config.state).entries if entry.is_committed]
        so_far = f"saved before that: {', '.join(saved)}" if saved else "no guest had been saved"
        raise errors.Interrupted(
            f"interrupted; the saves in progress were rolled back, {so_far}",
            hint="'mapsave restore-all' restores what was saved" if saved else None,
            saved=saved,
        ) from None


def _away(uri: str, error: errors.MapsaveError) -> Target:
    """Return the line of a libvirt that could not be asked for its guests."""
    target = save_targets.Target(configuration.Guest(uri))
    target.fail(error)
    return target


def _saver(config: Config) -> Saver:
    async def one(guest: Guest, request: save_request.Request, report: Report) -> dict[str, Any]:
        return await around.save(guest, config, request, report)

    return one


def _summary(
    config: Config, request: Request, lines: Sequence[Target], started: float
) -> dict[str, Any]:
    seconds = asyncio.get_running_loop().time() - started
    written = sum(line.result["data_bytes"] for line in lines if line.result)
    order = {"not_running": 1}  # after those that there was something to do with
    ordered = sorted(lines, key=lambda line: order.get(line.outcome, 0))
    return {
        "guests": [line.as_dict() for line in ordered],
        "dry_run": request.dry_run,
        **{word: sum(line.outcome == word for line in lines) for word in _COUNTED},
        "duration_s": round(seconds, 6),
        "bytes_per_s": round(written / seconds) if seconds else 0,
        "needed_bytes": sum(line.size for line in lines if line.outcome in ("planned", "saved")),
        "free_bytes": _free(config),
        "record": str(config.state / record.NAME),
        "exit_code": outcome.worst(line.error.exit_code for line in lines if line.error),
    }


def _free(config: Config) -> int | None:
    """Return the bytes that may be written beside the images; None where that is not known."""
    try:
        with store.directory(config.images) as held:
            return held.free_bytes()
    except errors.MapsaveError:
        return None
