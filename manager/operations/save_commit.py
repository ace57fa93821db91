"""Prove that what QEMU wrote is whole, and make it the image."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.image import bitmaps, syscalls
from manager.migration import guest_state
from manager.operations import check, ending, metadata, waiting

if TYPE_CHECKING:
    from manager.config import Guest
    from manager.image.image import Contents, Partial
    from manager.labels.labelling import Applied
    from manager.migration.guest_state import Paused
    from manager.migration.outgoing import Outcome
    from manager.operations.save_transfer import SaveJob

# Runs of unwritten pages shorter than this keep their preallocated blocks: giving back single
# pages costs more calls than it frees room.
_WORTH_PUNCHING = 1 << 20


async def prove(job: SaveJob, partial: Partial, outcome: Outcome | None) -> Contents:
    """Bring the data to stable storage and read the structure back.

    Raises CommitFailed, with the guest to be put back by the caller's contexts.
    """
    job.phases.enter("sync")
    try:
        await waiting.in_thread(partial.sync)
        job.phases.enter("validate")
        contents = await waiting.in_thread(partial.validate)
        if outcome is not None and outcome.normal_pages and not contents.data_bytes:
            raise errors.EmptyRam(
                f"QEMU wrote {outcome.normal_pages} pages, but every page bit is clear"
            )
        if job.strategy.preallocate:
            await waiting.in_thread(_trim, partial, contents)
    except OSError as error:
        raise errors.CommitFailed(f"{job.partial_path!r}: {error.strerror}") from None
    except errors.InvalidImage as error:
        raise errors.CommitFailed(
            f"{job.partial_path!r}, read back: {error.message}", found=error.as_dict()
        ) from None
    return contents


async def _end(job: SaveJob, paused: Paused) -> None:
    """End the guest, unless somebody else has continued it behind the commit."""
    if await _runs(job):
        paused.release()
        raise errors.GuestContinued(
            f"{job.session.address}: {job.path!r} is committed, but somebody else has continued "
            "the guest, which was not ended",
            hint="its disks move on, so the image is of use only together with a copy of them",
        )
    if not await ending.end_guest(job.session):
        job.log.unsettled()  # `mapsave recover` tries again


async def check_undisturbed(job: SaveJob) -> None:
    """See that nobody else has continued the guest meanwhile: its image would be stale.

    Raises GuestContinued. A guest that has ended is in the image, and nowhere else.
    """
    if job.then != "resume" and await _runs(job):
        raise errors.GuestContinued(
            f"{job.session.address}: somebody else continued the guest before its image was "
            "committed, which was removed",
            hint="the guest runs; save it again",
        )


async def _runs(job: SaveJob) -> bool:
    """Tell whether the guest runs; one whose QEMU does not tell counts as one that does not."""
    try:
        return await guest_state.run_state(job.session) == "running"
    except errors.MonitorError:
        return False


def _trim(partial: Partial, contents: Contents) -> None:
    """Give back what was preallocated and not written: behind the end, and long zero runs."""
    os.ftruncate(partial.fd, contents.stream.end)
    for block in contents.stream.blocks:
        for first, count in bitmaps.clear_runs(partial.fd, block):
            length = count * block.page_size
            if length >= _WORTH_PUNCHING:
                offset = block.pages_offset + first * block.page_size
                syscalls.punch_hole(partial.fd, offset, length)


async def commit(
    guest: Guest,
    job: SaveJob,
    partial: Partial,
    applied: Applied,
    paused: Paused,
    contents: Contents,
) -> dict[str, Any]:
    """Make the image valid under its name; only then may the guest go."""
    job.phases.enter("commit")
    final = metadata.after(
        job.metadata,
        contents,
        applied.label,
        duration=job.phases.total,
        paused_at=time.time() - paused.seconds() if job.facts.runs else None,
    )
    await job.log.step_in_thread("commit")
    # No other save commits under this name as long as the partial image is there.
    check.only_own(job.directory, job.name, job.request.replace_only)
    await waiting.in_thread(
        functools.partial(partial.commit, final, replace=job.request.replace)
    )
    await job.log.step_in_thread("committed")
    applied.at_rest()
    if job.then == "quit":
        job.phases.enter("quit")
        await _end(job, paused)
    if job.then != "resume":
        paused.release()
    stats = os.fstat(partial.fd)
    phases = job.phases.seconds()
    written = phases.get("write", 0) + phases.get("sync", 0)
    return {
        "image": job.path,
        "guest": guest.name,
        "format": job.request.format,
        "state": partial.block.state.word,
        "ram_bytes": contents.stream.ram_bytes,
        "data_bytes": contents.data_bytes,
        "file_bytes": stats.st_size,
        "allocated_bytes": stats.st_blocks * 512,
        "duration_s": round(job.phases.total, 6),
        "downtime_s": round(paused.seconds(), 6) if job.facts.runs else 0.0,
        "phases": phases,
        "bytes_per_s": round(contents.data_bytes / written) if written else 0,
        "strategy": job.strategy.as_dict(),
        "reasons": job.strategy.reasons,
        "label": applied.label.as_dict(),
        "then": job.then,
    }
