"""Keep the pause of a checkpoint within its limit: while it is predicted longer none begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mapsave import errors, units
from mapsave.operations import answering, learning
from mapsave.plan import pausing

if TYPE_CHECKING:
    from mapsave.operations.save_transfer import SaveJob
    from mapsave.plan.pausing import Measured, Prediction

_TRIES = 3  # where it is not to be tried for longer
_BETWEEN = 0.5  # seconds


async def kept(
    job: SaveJob, follow: Callable[[], Awaitable[None]], measure: Callable[[], Awaitable[Measured]]
) -> Prediction:
    """Have ``follow`` write what is dirty until the pause is predicted to be short enough.

    Returns the prediction. Raises PauseTooLong where it stays longer, and is not to be taken
    nevertheless; OSError.
    """
    wanted = job.request.settings.checkpoint
    fd, path = job.directory.fd, job.directory.path
    factors = await answering.within(path, learning.factors, job.state, fd)
    tries, until = 0, time.monotonic() + wanted.patience
    while True:
        await follow()
        found = pausing.predict(await measure(), factors, is_flushed=True)
        tries += 1
        if job.then != "resume" or found.pause <= wanted.pause:
            return found
        is_over = time.monotonic() > until if wanted.above == "again" else tries >= _TRIES
        if is_over and wanted.above == "take":
            return found
        if is_over:
            raise _too_long(job, found)
        await asyncio.sleep(_BETWEEN)


def _too_long(job: SaveJob, found: Prediction) -> errors.PauseTooLong:
    limit = job.request.settings.checkpoint.pause
    text = units.format_duration
    return errors.PauseTooLong(
        f"{job.session.address}: a checkpoint is predicted to pause the guest for "
        f"{text(found.pause)}, and may for {text(limit)}: it writes too much",
        hint="set a longer 'pause' in save: {checkpoint: …}, or what is done 'above' it; or save "
        "the guest with --live",
        predicted_s=round(found.pause, 6),
        limit_s=limit,
    )
