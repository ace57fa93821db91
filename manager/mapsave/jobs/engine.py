"""Run a save job once: its guests side by side, each on its own, whatever befalls the others."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NotRequired, TypedDict

from mapsave import errors, units
from mapsave.config import Config, Guest
from mapsave.hooks import around
from mapsave.jobs import outcome, retention, template
from mapsave.jobs.job import Job
from mapsave.migration import progress
from mapsave.migration.progress import Report
from mapsave.operations import preview, save_request
from mapsave.operations.results import SaveResult
from mapsave.operations.save_request import Request
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    import tenacity

Saver = Callable[[Guest, Request, Report], Awaitable[SaveResult]]

_log = logging.getLogger(__name__)

# What may pass by itself, of that which is found before anything is changed. Other refusals need
# someone who fixes them.
_MAY_PASS = (errors.Unreachable, errors.NoRoom, errors.Busy)
_WILL_NOT = (
    errors.ServiceStopping,
    errors.ServiceRunning,
    errors.AgentRunning,
    errors.NotLeading,
    errors.NotCancellable,
)


class Try(TypedDict):
    """One try of a save, and when it began."""

    started: str
    error: errors.ErrorDict | None


class Line(TypedDict):
    """What came of one guest."""

    guest: str
    result: Facts | None
    error: errors.ErrorDict | None
    tries: NotRequired[list[Try]]


class Run(TypedDict):
    """What came of a job: what ``mapsave job run|check --json`` print."""

    job: str
    guests: list[Line]
    saved: int
    failed: int
    exit_code: int
    pruned: NotRequired[list[retention.Line]]
    prune_error: NotRequired[errors.ErrorDict | None]


async def run(
    job: Job, config: Config, *, saver: Saver | None = None, report: Report = progress.silent
) -> Run:
    """Save every guest of the job, at most ``concurrency`` at once; return the summary.

    ``saver`` saves one guest, ``around.save`` if not given. ``report`` is called with how far all
    of them are together. A save that could not begin is tried again as ``retries`` says; in the
    meantime another guest has its place. One guest's failure is a line of the summary, not the end
    of the job. Images that ``keep`` does not keep are removed afterwards, those of guests that were
    saved now. Cancelled, the saves under way put their guests back first. Raises ConfigError where
    the job names no guest or ambiguous images, Interrupted in place of a cancellation: it names the
    guests that were saved by then.
    """
    now = datetime.datetime.now(datetime.UTC)
    slots = asyncio.Semaphore(job.concurrency)
    saved: dict[str, SaveResult] = {}
    together = progress.Together(len(job.resolve(config)), report)

    async def one(guest: Guest, line: Line) -> Facts:
        tries: list[Try] = []
        line["tries"] = tries
        told = together.part(guest.name)
        request = _request(job, config, guest, now)

        async def attempt() -> SaveResult:
            async with slots:
                tried: Try = {"started": units.timestamp(time.time()), "error": None}
                tries.append(tried)
                try:
                    if saver is not None:
                        return await saver(guest, request, told)
                    return await around.save(guest, config, request, told, more=job.hooks)
                except errors.MapsaveError as error:
                    tried["error"] = error.as_dict()
                    raise

        try:
            saved[guest.name] = await _tried(job, guest, attempt)
        finally:
            together.end(guest.name)
        return saved[guest.name].as_dict()

    try:
        done = await _each(job, config, one)
        await _prune(job, config, done, saved)
        return done
    except asyncio.CancelledError:
        ordered = [saved[name] for name in job.resolve(config) if name in saved]
        raise _interrupted(job, ordered) from None


async def check(job: Job, config: Config) -> Run:
    """Check every guest of the job as its save would; return the summary.

    Raises ConfigError where the job names no guest or ambiguous images.
    """
    now = datetime.datetime.now(datetime.UTC)
    slots = asyncio.Semaphore(job.concurrency)

    async def one(guest: Guest, _: Line) -> Facts:
        async with slots:
            request = _request(job, config, guest, now)
            found, error = await preview.preview(guest, config, request)
        if error is not None:
            raise error
        return found

    return await _each(job, config, one)


def may_pass(error: BaseException) -> bool:
    """Return whether to try a save again: nothing was changed, and the cause may pass by itself."""
    return isinstance(error, _MAY_PASS) and not isinstance(error, _WILL_NOT)


async def _tried(
    job: Job, guest: Guest, attempt: Callable[[], Awaitable[SaveResult]]
) -> SaveResult:
    """Do ``attempt`` until it succeeds, fails for good, or has failed as often as it may."""
    import tenacity  # slow to import

    def log_retry(state: tenacity.RetryCallState) -> None:
        error, wait = state.outcome and state.outcome.exception(), job.retries.wait
        pause = units.format_duration(wait)
        _log.warning("job %s: guest %s: %s; retrying in %s", job.name, guest.name, error, pause)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=tenacity.stop_after_attempt(1 + job.retries.times),
        wait=tenacity.wait_fixed(job.retries.wait),
        before_sleep=log_retry,
        reraise=True,
    )
    return await retrying(attempt)


async def _prune(job: Job, config: Config, done: Run, saved: dict[str, SaveResult]) -> None:
    """Remove what the job does not keep of the guests that it saved, and report it in ``done``."""
    names = [line["guest"] for line in done["guests"] if line["guest"] in saved]
    images = [str(saved[name].image) for name in names]
    done["pruned"], done["prune_error"] = [], None
    codes = [done["exit_code"]]
    try:
        done["pruned"] = await retention.prune(job, config, guests=names, made=images)
        codes += retention.exit_codes(done["pruned"])
    except Exception as error:
        # Not even a bug here must cost the saves their summary.
        failed = errors.as_ours(error)
        done["prune_error"] = failed.as_dict()
        codes.append(failed.exit_code)
    done["exit_code"] = outcome.worst(codes)


def _request(job: Job, config: Config, guest: Guest, now: datetime.datetime) -> Request:
    return save_request.request(
        config,
        guest,
        **job.given,
        # The default is what a save without a name takes, which no other image has.
        image=None if job.save.image == template.DEFAULT else job.image_name(guest.name, now),
        replace=job.save.replace,
        in_use=job.save.in_use,
        timeout=job.timeout,
        job=job.name,
    )


async def _each(job: Job, config: Config, work: Callable[[Guest, Line], Awaitable[Facts]]) -> Run:
    """Do ``work`` for each guest of the job, and return what came of them."""
    lines: list[Line] = [
        {"guest": name, "result": None, "error": None} for name in job.resolve(config)
    ]

    async def one(line: Line) -> None:
        try:
            line["result"] = await work(config.guest(line["guest"]), line)
        except Exception as error:
            # Not even a bug in one save must cost the others theirs.
            line["error"] = errors.as_ours(error).as_dict()

    async with asyncio.TaskGroup() as group:
        for line in lines:
            group.create_task(one(line))
    failed = [line["error"]["exit_code"] for line in lines if line["error"] is not None]
    return {
        "job": job.name,
        "guests": lines,
        "saved": len(lines) - len(failed),
        "failed": len(failed),
        "exit_code": outcome.worst(failed),
    }


def _interrupted(job: Job, results: list[SaveResult]) -> errors.Interrupted:
    """Return the error for a cancelled run; guests already saved are not resumed."""
    saved = [str(result.guest) for result in results]
    so_far = f"saved before that: {', '.join(saved)}" if saved else "no guest had been saved"
    hint = "'mapsave restore' restores what was saved, 'mapsave list' lists the images"
    return errors.Interrupted(
        f"job {job.name} was interrupted; the saves in progress were rolled back, {so_far}",
        hint=hint if any(result.then == "quit" for result in results) else None,
        saved=saved,
        images=[result.image for result in results],
    )
