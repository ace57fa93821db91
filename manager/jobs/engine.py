"""Run a save job once: its guests side by side, each on its own, whatever befalls the others."""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.operations import preview, save, save_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from manager.config import Config, Guest
    from manager.jobs.job import Job

# What is worst to the one who reads the exit code: a lost or damaged thing before a refused one.
_WORST_FIRST = (1, 4, 5, 6, 7, 9, 8, 3, 2, 0)


async def run(job: Job, config: Config) -> dict[str, Any]:
    """Save every guest of the job, at most ``concurrency`` at once; return the summary.

    One guest's failure is a line of the summary, not the end of the job. Cancelled, the saves under
    way put their guests back first.

    Raises ConfigError where the job names no guest or ambiguous images.
    """
    now = datetime.datetime.now(datetime.UTC)

    async def one(guest: Guest) -> dict[str, Any]:
        return await save.save(guest, config, _request(job, config, guest, now))

    return await _each(job, config, one)


async def check(job: Job, config: Config) -> dict[str, Any]:
    """Check every guest of the job as its save would; return the summary.

    Raises ConfigError where the job names no guest or ambiguous images.
    """
    now = datetime.datetime.now(datetime.UTC)

    async def one(guest: Guest) -> dict[str, Any]:
        found, error = await preview.preview(guest, config, _request(job, config, guest, now))
        if error is not None:
            raise error
        return found

    return await _each(job, config, one)


def _request(
    job: Job, config: Config, guest: Guest, now: datetime.datetime
) -> save_request.Request:
    settings = {**job.given, "image": job.image_name(guest.name, now), "replace": job.replace}
    return save_request.request(config, guest, **settings, timeout=job.timeout)


async def _each(
    job: Job, config: Config, work: Callable[[Guest], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    names = job.resolve(config)
    slots = asyncio.Semaphore(job.concurrency)

    async def one(name: str) -> dict[str, Any]:
        line: dict[str, Any] = {"guest": name, "result": None, "error": None}
        async with slots:
            try:
                line["result"] = await work(config.guest(name))
            except errors.MapsaveError as error:
                line["error"] = error.as_dict()
            except Exception as error:
                # A bug in one save must not cost the others theirs.
                bug = errors.MapsaveError(f"unexpected {type(error).__name__}: {error}")
                line["error"] = bug.as_dict()
        return line

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name)) for name in names]
    lines = [task.result() for task in tasks]
    codes = {line["error"]["exit_code"] if line["error"] else 0 for line in lines}
    return {
        "job": job.name,
        "guests": lines,
        "saved": sum(line["error"] is None for line in lines),
        "failed": sum(line["error"] is not None for line in lines),
        "exit_code": next(code for code in _WORST_FIRST if code in codes),
    }
