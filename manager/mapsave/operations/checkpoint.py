"""Take a checkpoint: a whole image of a guest that is paused for milliseconds.

While the guest runs, each of its RAM files is mirrored by a file that shares all its extents
(``image/reflink.py``). Then the guest is paused, QEMU writes the states of its devices, the mirrors
are brought up to date, which is little by then, and the guest is resumed. After that the image is
composed of both (``image/composing.py``). It is committed as any image that a save has written.
"""

import asyncio
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator

from mapsave import blocking, errors, shielded
from mapsave.image import (
    composing,
    descriptors,
    global_state,
    image,
    legacy_stream,
    reflink,
)
from mapsave.image.composing import Composed
from mapsave.image.metadata import CheckpointPart
from mapsave.image.reflink import Mirror
from mapsave.labels import labelling
from mapsave.migration import guest_state, outgoing, parameters, stall
from mapsave.migration.run_states import RunState
from mapsave.monitor import fdset
from mapsave.operations import hardware, pause_limit, save_transfer, shared_ram, written
from mapsave.operations.fresh_ram import FreshRam
from mapsave.operations.save_transfer import SaveJob
from mapsave.operations.shared_ram import SharedRam
from mapsave.operations.steps import Step
from mapsave.plan import pausing
from mapsave.plan.pausing import Measured

# The mirrors are brought up to date while the guest runs until that takes no longer than this, or
# no more extents have changed, or so often: a guest that writes fast will never be done.
_SHORT = 0.03  # seconds
_LITTLE = 512
_ROUNDS = 6
# With more extents only those that are dirty are looked at in the pause.
_FEW = pausing.FEW
# What has been dirty for half a minute the kernel writes itself (dirty_expire_centisecs): if it is
# longer since all extents were looked at, they are once more. In seconds.
_LONG = 20.0
# So often that is tried; after that the guest waits until each extent was looked at.
_QUICK_PAUSES = 2
# Seconds that the guest may be paused for its mirrors: storage that takes longer hangs.
_MOST_PAUSED = 30.0


@dataclasses.dataclass
class Mirrors:
    """The mirrors of a guest's RAM files, by block; ``fds`` are the mirrors' descriptors.

    ``is_quick``: they can ``catch_up``, and so many extents are not looked at in the pause; None
    where that is not known yet. ``updated``: when all were looked at last.
    """

    mirrors: tuple[Mirror, ...]
    fds: dict[str, int]
    total: int
    is_quick: bool | None = None
    updated: float = -math.inf

    async def update(self, seconds: float, *, is_last: bool = False) -> int:
        """Bring all up to date; return in how many extents that was. Raises OSError, Hangs."""
        with self.stopping():
            return await blocking.within(seconds, functools.partial(self._update, is_last=is_last))

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Have what another thread does to them end soon if its caller is cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            for each in self.mirrors:
                each.stop()
            raise

    async def follow(self) -> None:
        """Bring all up to date while the guest runs, as far as that is worth it."""
        for _ in range(_ROUNDS):
            began, changed = time.monotonic(), None
            is_many = self.extents > _FEW and self.is_quick is not False
            if is_many and began - self.updated < _LONG:
                changed = await self.catch_up(stall.limit(self.total))
                self.is_quick = changed is not None
            if changed is None:
                changed = await self.update(stall.limit(self.total), is_last=True)
                self.updated = began
                if self.extents > _FEW and self.is_quick is None:
                    continue  # it is to be seen whether they can be brought up to date so
            if changed <= _LITTLE or time.monotonic() - began <= _SHORT:
                break

    async def measured(self, shared: SharedRam, directory: int) -> Measured:
        """Return what the pause is predicted from now. Raises OSError, Hangs."""
        return await blocking.within(
            stall.limit(self.total), self._measured, shared.written, directory
        )

    def _measured(self, others: int, directory: int) -> Measured:
        dirty = [each.dirty() for each in self.mirrors]
        known = [each for each in dirty if each is not None]
        system = reflink.file_system(directory) or ""
        is_known = len(known) == len(dirty)
        return Measured(system, self.total, self.extents, sum(known) if is_known else None, others)

    async def catch_up(self, seconds: float) -> int | None:
        """Share what is dirty; return in how many parts that was. Raises OSError, Hangs.

        None where the kernel does not say what is dirty.
        """
        with self.stopping():
            return await blocking.within(seconds, self._catch_up)

    async def are_certain(self) -> bool:
        """Return whether ``catch_up`` has shared all that had changed. Raises OSError, Hangs."""
        looks = [each.is_certain for each in self.mirrors]
        limit = stall.limit(self.total)
        return await blocking.within(limit, lambda: all(look() for look in looks))

    def _update(self, *, is_last: bool) -> int:
        return sum(each.update(is_last=is_last) for each in self.mirrors)

    def _catch_up(self) -> int | None:
        found = [each.catch_up() for each in self.mirrors]
        known = [each for each in found if each is not None]
        return sum(known) if len(known) == len(found) else None

    @property
    def extents(self) -> int:
        return sum(each.extents for each in self.mirrors)


async def write(
    job: SaveJob, partial: image.Partial, applied: labelling.Applied, paused: guest_state.Paused
) -> outgoing.Outcome | None:
    """Write the image; as ``save_transfer.let_qemu_write``, but the guest is resumed after it."""
    assert job.shared_ram is not None
    work = _write(job, job.shared_ram, partial, applied, paused)
    return await save_transfer.judged(job, partial, applied, paused, work)


async def _write(
    job: SaveJob,
    shared: SharedRam,
    partial: image.Partial,
    applied: labelling.Applied,
    paused: guest_state.Paused,
) -> outgoing.Outcome:
    async with contextlib.AsyncExitStack() as stack:
        job.phases.enter("mirror")
        try:
            mirrors = await stack.enter_async_context(shielded.entered(_mirrored(job, shared)))
        except OSError as error:
            await guest_state.run_state(job.session)  # raises what says more, if QEMU has died
            raise errors.SaveFailed(
                f"{job.session.address}: the guest's RAM files cannot be shared with others in "
                f"{job.directory.path!r}: {error.strerror}"
            ) from None
        architecture = await hardware.architecture(job.session, job.facts.hardware)
        measure = functools.partial(mirrors.measured, shared, job.directory.fd)
        predicted = await pause_limit.kept(job, mirrors.follow, measure)
        pauses = 0
        while True:
            is_quick = bool(mirrors.is_quick) and job.then == "resume" and pauses < _QUICK_PAUSES
            outcome, changed = await _paused(
                job, partial, applied, paused, mirrors, is_quick=is_quick
            )
            pauses += 1
            if not is_quick or await mirrors.are_certain():
                break
            # The kernel has written some of what the guest had changed, at the wrong moment.
            job.phases.enter("mirror")
            mirrors.updated = -math.inf
            await mirrors.follow()
            await job.resumes.restart()
            paused.again()
        job.phases.enter("compose")
        try:
            async with blocking.limited(stall.limit(2 * mirrors.total)):
                with mirrors.stopping():
                    done, fresh = await blocking.call(_compose, job, partial, mirrors, architecture)
        except errors.InvalidImage as error:
            raise errors.SaveFailed(
                f"{job.session.address}: the stream that QEMU has written without the guest's "
                f"shared memory is not as expected: {error.message}",
                hint=shared_ram.INSTEAD,
            ) from None
    part: CheckpointPart = {
        "shared_bytes": done.shared_bytes,
        "written_bytes": done.written_bytes,
        "extents": mirrors.extents,
        "extents_while_paused": changed,
        "pauses": pauses,
        "paused_s": round(paused.seconds(), 6) if job.facts.runs else 0.0,
        "predicted_pause_s": round(predicted.pause, 6),
        "afresh": fresh.is_wanted,
    }
    if fresh.after is not None:
        part["extents_after"] = fresh.after
    job.rewritten = fresh.warning()
    # Zeros that are data of the RAM file are no pages that QEMU has failed to write.
    job.metadata = {
        **job.metadata,
        "checkpoint": part,
        "written": written.NOTHING_MISSING.as_dict(),
        "data_bytes": done.shared_bytes + done.written_bytes,
    }
    await blocking.within(blocking.ANSWER, partial.note, job.metadata)
    await job.log.step(Step.COMPLETE)
    if job.then == "resume":
        await job.log.step(Step.RESUME)  # from now on recovery completes the save
    return outcome


@contextlib.contextmanager
def _mirrored(job: SaveJob, shared: SharedRam) -> Iterator[Mirrors]:
    """Make files without a name beside the image that become the mirrors. Raises OSError."""
    with contextlib.ExitStack() as stack:
        mirrors, fds = [], {}
        for part in shared.parts:
            source = stack.enter_context(shared_ram.opened(part))
            target = stack.enter_context(descriptors.unnamed(job.directory.fd))
            mirrors.append(Mirror(source, part.offset, part.length, target))
            fds[part.block] = target
        yield Mirrors(tuple(mirrors), fds, shared.bytes)


async def _paused(
    job: SaveJob,
    partial: image.Partial,
    applied: labelling.Applied,
    paused: guest_state.Paused,
    mirrors: Mirrors,
    *,
    is_quick: bool,
) -> tuple[outgoing.Outcome, int]:
    """Do as ``_let_qemu_write``; where it fails the guest is resumed before all else."""
    try:
        return await _let_qemu_write(job, partial, applied, paused, mirrors, is_quick=is_quick)
    except BaseException:
        # Before anything else is waited for, such as calls that hang.
        with contextlib.suppress(errors.MonitorLost):
            await shielded.whole(paused.put_back(job.session, job.phases))
        raise


async def _let_qemu_write(
    job: SaveJob,
    partial: image.Partial,
    applied: labelling.Applied,
    paused: guest_state.Paused,
    mirrors: Mirrors,
    *,
    is_quick: bool,
) -> tuple[outgoing.Outcome, int]:
    """Have QEMU write its stream to the partial image, and resume the guest.

    Returns the outcome, and in how many extents the mirrors were changed in the pause. All that can
    be is done before the guest is paused, and after it is resumed.
    """
    await job.log.step(Step.HAND_OVER)
    await save_transfer.check_state(job)
    paired = descriptors.paired(partial.fd, os.O_WRONLY, direct_io=False)
    async with contextlib.AsyncExitStack() as stack:
        pair = await stack.enter_async_context(shielded.entered(paired))
        dropped = functools.partial(save_transfer.refused, job, pair.first)
        configured = parameters.configured(
            job.session,
            job.facts.settings,
            {"max-bandwidth": 0},
            capabilities=parameters.CHECKPOINT,
        )
        await stack.enter_async_context(configured)
        handed_over = fdset.handed_over(job.session, (pair.first, pair.second), job.fdset, dropped)
        path = await stack.enter_async_context(handed_over)
        # Both steps now: to write them takes time that the guest would wait for. Recovery resumes
        # a guest that is paused then, and takes no stream for whole that is not composed.
        if job.facts.runs:
            await job.log.step(Step.PAUSE)
        await job.log.step(Step.MIGRATE)
        if not is_quick or await mirrors.catch_up(stall.limit(mirrors.total)) is None:
            await mirrors.update(stall.limit(mirrors.total))
        job.is_begun = True
        job.phases.enter("pause")
        if job.facts.runs:
            await job.session.pause()
            paused.since = time.monotonic()
        if await guest_state.run_state(job.session) == RunState.RUNNING:
            raise outgoing.continued(job.session, "before QEMU began to save it")
        offset = partial.block.stream_offset
        outcome = await outgoing.save(job.session, path, offset, job.phases, live=False)
        await job.resumes.saved()
        job.phases.enter("share")
        changed = await mirrors.catch_up(_MOST_PAUSED) if is_quick else None
        if changed is None:
            changed = await mirrors.update(_MOST_PAUSED, is_last=True)
        with contextlib.suppress(OSError):
            ended_in = await blocking.within(blocking.ANSWER, global_state.read, partial.fd, offset)
            if ended_in is not None:
                paused.ended_in(ended_in)
        if await job.resumes.seen():
            raise outgoing.continued(job.session, "while its checkpoint was taken")
        if job.then == "resume" and paused.continues:
            await save_transfer.resume(job, partial, applied, paused)
        job.phases.enter("settle")
        return outcome, changed


def _compose(
    job: SaveJob, partial: image.Partial, mirrors: Mirrors, architecture: str
) -> tuple[Composed, FreshRam]:
    """Make the image of QEMU's stream, in whose place it is. Raises InvalidImage, OSError."""
    offset = partial.block.stream_offset
    by_block = dict(zip(mirrors.fds, mirrors.mirrors, strict=True))
    fresh = FreshRam.of(by_block, mirrors.extents, mirrors.total, job.directory)
    with descriptors.unnamed(job.directory.fd) as legacy:
        size = os.fstat(partial.fd).st_size - offset
        _move(partial.fd, offset, size, legacy)
        partial.start_over(job.metadata)
        stream = legacy_stream.read(legacy, size, architecture)
        done = composing.compose(partial.fd, offset, legacy, stream, mirrors.fds, fresh.put)
    fresh.rejoin(partial.fd)
    return done, fresh


def _move(fd: int, offset: int, size: int, to: int) -> None:
    done = 0
    while done < size:
        copied = os.sendfile(to, fd, offset + done, size - done)
        if not copied:
            raise errors.TruncatedImage("the stream is cut short")
        done += copied
