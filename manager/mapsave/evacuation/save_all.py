"""Save every guest before the host goes down: highest priority first, as many as the deadline
allows.

Read ``save_all`` and the ``Run`` of ``run.py`` from top to bottom: look at all guests while they
run, write down what is about to be saved, then begin one save after the other as the disk takes
them.
"""

import asyncio
import collections
from collections.abc import Sequence
from typing import TypedDict

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
from mapsave.operations import answering, save_request
from mapsave.operations.results import SaveResult


class SavedAll(TypedDict):
    """What ``mapsave save-all --json`` prints; sizes in bytes, times in seconds."""

    guests: list[save_targets.Line]
    dry_run: bool
    saved: int
    failed: int
    no_time: int
    not_running: int
    skipped: int
    duration_s: float
    bytes_per_s: int
    needed_bytes: int
    free_bytes: int | None
    record: str
    exit_code: int
    rate_bytes_per_s: float | None


async def save_all(
    config: Config, request: Request, report: Report = silent, *, saver: Saver | None = None
) -> SavedAll:
    """Save the guests, and return the summary.

    One guest's failure is a line of the summary. ``saver`` saves one guest. Cancelled, the saves
    under way put their guests back first; what is committed stays in the record. Raises
    UnknownGuest, UsageError, Unsupported, Unreachable or NotPermitted where it is not known which
    guests there are, Busy, and Refused where the record cannot be written: nothing is touched then.
    """
    started = asyncio.get_running_loop().time()
    patience = save_targets.patience_for(request.deadline)
    found, lost = await guests.chosen(config, request.guests, request.libvirt, patience)
    away = [_away(name, error) for name, error in lost.items()]
    if request.dry_run:
        lines = [*await save_targets.examined(config, found, request.then, None), *away]
        rate = await answering.within(config.images, forecast.known_rate, config)
        forecast.foretell(lines, request.deadline, rate)
        return _summary(config, request, lines, started, rate)

    async def usual(guest: Guest, wanted: save_request.Request, told: Report) -> SaveResult:
        return await around.save(guest, config, wanted, told)

    with record.hold(config.state, set_aside=True) as kept:
        lines = await save_targets.examined(config, found, request.then, request.deadline)
        lines += away
        saved_before = {each.guest: each.image for each in kept.entries}
        for line in lines:
            line.image = line.image or saved_before.get(line.name)
        saves = save_run.Run(config, request, lines, kept, saver or usual, report, started)
        await saves.to_the_end()
        return _summary(config, request, lines, started, saves.pace.rate)


async def interruptible(
    config: Config, request: Request, report: Report = silent, *, saver: Saver | None = None
) -> SavedAll:
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


def _away(name: str, error: errors.MapsaveError) -> Target:
    """Return the line of a guest that cannot be reached, or a libvirt that could not be asked."""
    target = save_targets.Target(configuration.Guest(name))
    target.fail(error)
    return target


def _summary(
    config: Config, request: Request, lines: Sequence[Target], started: float, rate: float | None
) -> SavedAll:
    seconds = asyncio.get_running_loop().time() - started
    written = sum(line.result.data_bytes for line in lines if line.result)
    # Those that do not run come after those that there was something to do with.
    ordered = sorted(lines, key=lambda line: line.outcome == "not_running")
    counts = collections.Counter(line.outcome for line in lines)
    return {
        "guests": [line.line() for line in ordered],
        "dry_run": request.dry_run,
        "saved": counts["saved"],
        "failed": counts["failed"],
        "no_time": counts["no_time"],
        "not_running": counts["not_running"],
        "skipped": counts["skipped"],
        "duration_s": round(seconds, 6),
        "bytes_per_s": round(written / seconds) if seconds else 0,
        "needed_bytes": sum(line.size for line in lines if line.outcome in ("planned", "saved")),
        "free_bytes": _free(config),
        "record": str(config.state / record.NAME),
        "exit_code": outcome.worst(line.error.exit_code for line in lines if line.error),
        "rate_bytes_per_s": rate,
    }


def _free(config: Config) -> int | None:
    """Return the bytes that may be written beside the images; None where that is not known."""
    try:
        with store.directory(config.images) as held:
            return held.free_bytes()
    except errors.MapsaveError:
        return None
