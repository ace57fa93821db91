"""Run a save job once: its guests side by side, each on its own, whatever befalls the others."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.hooks import around
from mapsave.jobs import outcome, retention
from mapsave.jobs.job import Job
from mapsave.migration import progress
from mapsave.migration.progress import Report
from mapsave.operations import preview, save_request
from mapsave.operations.save_request import Request

Line = dict[str, Any]
Saver = Callable[[Guest, Request], Awaitable[dict[str, Any]]]

_log = logging.getLogger(__name__)

# What may pass by itself, of that which is found before anything is changed. Other refusals need
# someone who fixes them.
_MAY_PASS = (errors.Unreachable, errors.NoRoom, errors.Busy)
_WILL_NOT = (errors.ServiceStopping, errors.ServiceRunning, errors.NotCancellable)


async def run(
    job: Job, config: Config, *, saver: Saver | None = None, report: Report = progress.silent
) -> dict[str, Any]:
    """Save every guest of the job, at most ``concurrency`` at once; return the summary.

    ``saver`` saves one guest, ``around.save`` if not given, which calls ``report``. A save that
    could not begin is tried again as ``retries`` says; in the meantime another guest has its place.
    One guest's failure is a line of the summary, not the end of the job. Images that ``keep`` does
    not keep are removed afterwards, those of guests that were saved now. Cancelled, the saves under
    way put their guests back first.

    Raises ConfigError where the job names no guest or ambiguous images, Interrupted in place of a
    cancellation: it names the guests that were saved by then.
    """
    now = datetime.datetime.now(datetime.UTC)
    slots = asyncio.Semaphore(job.concurrency)

    async def hooks_around(guest: Guest, request: Request) -> dict[str, Any]:
        return await around.save(guest, config, request, report, more=job.hooks)

    save = saver or hooks_around

    async def one(guest: Guest, line: Line) -> dict[str, Any]:
        line["tries"] = []
        request = _request(job, config, guest, now)

        async def attempt() -> dict[str, Any]:
            async with slots:
                tried: Line = {"started": time.time(), "error": None}
                line["tries"].append(tried)
                try:
                    return await save(guest, request)
                except errors.MapsaveError as error:
                    tried["error"] = error.as_dict()
                    raise

        return await _tried(job, guest, attempt)

    lines = _lines(job, config)
    try:
        results = await _each(job, config, one, lines)
        return {**results, **await _prune(job, config, results)}
    except asyncio.CancelledError:
        raise _interrupted(job, lines) from None


async def check(job: Job, config: Config) -> dict[str, Any]:
    """Check every guest of the job as its save would; return the summary.

    Raises ConfigError where the job names no guest or ambiguous images.
    """
    now = datetime.datetime.now(datetime.UTC)
    slots = asyncio.Semaphore(job.concurrency)

    async def one(guest: Guest, _: Line) -> dict[str, Any]:
        async with slots:
            request = _request(job, config, guest, now)
            found, error = await preview.preview(guest, config, request)
        if error is not None:
            raise error
        return found

    return await _each(job, config, one, _lines(job, config))


def may_pass(error: BaseException) -> bool:
    """Return whether to try a save again: nothing was changed, and the cause may pass by itself."""
    return isinstance(error, _MAY_PASS) and not isinstance(error, _WILL_NOT)


async def _tried(
    job: Job, guest: Guest, attempt: Callable[[], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Do ``attempt`` until it succeeds, fails for good, or has failed as often as it may."""
    import tenacity  # slow to import

    def log_retry(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning(
            "job %s: guest %s: %s; retrying in %g s",
            job.name,
            guest.name,
            error,
            job.retries.wait,
        )

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=tenacity.stop_after_attempt(1 + job.retries.times),
        wait=tenacity.wait_fixed(job.retries.wait),
        before_sleep=log_retry,
        reraise=True,
    )
    return await retrying(attempt)


async def _prune(job: Job, config: Config, done: dict[str, Any]) -> dict[str, Any]:
    """Remove what the job does not keep of the guests that it saved; return what to report about
    it."""
    saved = [line for line in done["guests"] if line["error"] is None]
    names = [line["guest"] for line in saved]
    images = [line["result"]["image"] for line in saved]
    told: dict[str, Any] = {"pruned": [], "prune_error": None}
    try:
        told["pruned"] = await retention.prune(job, config, guests=names, made=images)
    except errors.MapsaveError as error:
        told["prune_error"] = error.as_dict()
    except Exception as error:
        # Nor must one here cost the saves their summary.
        told["prune_error"] = _bug(error).as_dict()
    codes = [done["exit_code"], *retention.exit_codes(told["pruned"])]
    if told["prune_error"]:
        codes.append(told["prune_error"]["exit_code"])
    return {**told, "exit_code": outcome.worst(codes)}


def _request(job: Job, config: Config, guest: Guest, now: datetime.datetime) -> Request:
    return save_request.request(
        config,
        guest,
        **job.given,
        image=job.image_name(guest.name, now),
        replace=job.save.replace,
        timeout=job.timeout,
        job=job.name,
    )


def _lines(job: Job, config: Config) -> list[Line]:
    return [{"guest": name, "result": None, "error": None} for name in job.resolve(config)]


async def _each(
    job: Job,
    config: Config,
    work: Callable[[Guest, Line], Awaitable[dict[str, Any]]],
    lines: list[Line],
) -> dict[str, Any]:
    """Do ``work`` for the guest of each line, and note there what came of it."""

    async def one(line: Line) -> None:
        try:
            line["result"] = await work(config.guest(line["guest"]), line)
        except errors.MapsaveError as error:
            line["error"] = error.as_dict()
        except Exception as error:
            # A bug in one save must not cost the others theirs.
            line["error"] = _bug(error).as_dict()

    async with asyncio.TaskGroup() as group:
        for line in lines:
            group.create_task(one(line))
    return {
        "job": job.name,
        "guests": lines,
        "saved": sum(line["error"] is None for line in lines),
        "failed": sum(line["error"] is not None for line in lines),
        "exit_code": outcome.worst(line["error"]["exit_code"] for line in lines if line["error"]),
    }


def _interrupted(job: Job, lines: list[Line]) -> errors.Interrupted:
    """Return the error for a cancelled run; guests already saved are not resumed."""
    results = [line["result"] for line in lines if line["result"]]
    saved = [result["guest"] for result in results]
    so_far = f"saved before that: {', '.join(saved)}" if saved else "no guest had been saved"
    ended = any(result["then"] == "quit" for result in results)
    return errors.Interrupted(
        f"job {job.name} was interrupted; the saves in progress were rolled back, {so_far}",
        hint="'mapsave restore' restores what was saved, 'mapsave list' lists the images"
        if ended
        else None,
        saved=saved,
        images=[result["image"] for result in results],
    )


def _bug(error: Exception) -> errors.MapsaveError:
    return errors.MapsaveError(f"unexpected {type(error).__name__}: {error}")
