"""Make an image cheaper to keep and faster to restore, once it is proved, before it is committed.

What was preallocated and not used is given back; long runs of zeros that were written become holes;
and short gaps between used pages are filled in the bitmaps, so that a restore reads in long runs.
None of that changes what the image holds, however far it comes: a used page in a hole reads as
zeros, as an unused one does. So where the file system fails in it, the image is committed all the
same; and recovery takes it as it finds it, for what was proved is noted before the first change.
"""

import errno
import functools
import logging
import os

from mapsave import blocking, errors
from mapsave.image import gaps, syscalls
from mapsave.image.image import Partial
from mapsave.image.validation import Contents
from mapsave.migration import guest_state
from mapsave.migration.outgoing import Outcome
from mapsave.migration.run_states import RunState
from mapsave.operations import learning, save_commit, written, written_zeros
from mapsave.operations.save_transfer import SaveJob
from mapsave.operations.written import Written
from mapsave.operations.written_zeros import Run
from mapsave.plan import cost, joining, probe

# Shorter runs keep their blocks: giving back single pages costs more calls than it frees room.
_WORTH_PUNCHING = 1 << 20

_log = logging.getLogger(__name__)


async def polish(
    job: SaveJob, partial: Partial, outcome: Outcome | None, proven: tuple[Contents, Written]
) -> tuple[Contents, Written]:
    """Polish the image; return its contents as they are then, and ``proven``'s other half.

    Where that cannot be done, ``job.unpolished`` says why. Raises CommitFailed where the image
    cannot be brought to stable storage or be read again.
    """
    job.phases.enter("polish")
    contents, found = proven
    is_changed = False
    async with save_commit.reading_back(job, outcome, job.facts.memory.total):
        try:
            if job.strategy.preallocate:
                await blocking.call(_trim, partial, contents)
            # QEMU that is gone has left all there is of its guest: no more than needed is done.
            zeros = await _zeros(job, contents) if outcome is not None else []
            most = 0
            if outcome is not None and not _is_rewritten(job, contents, outcome):
                most = await blocking.call(_longest_gap, job, partial, contents)
            if zeros or most:
                is_changed = True
                await blocking.call(_change, job, partial, proven, zeros, most)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            job.unpolished = (
                f"the image could not be made faster to restore ({reason}): it is complete, but "
                "may take more time and space than it needs"
            )
            _log.warning("%s: %s", job.path, job.unpolished)
        if is_changed:
            await blocking.call(partial.sync)
            contents = await blocking.call(partial.validate)
            contents = contents.of_data(job.metadata.get("data_bytes", contents.used_bytes))
    return contents, found


def _trim(partial: Partial, contents: Contents) -> None:
    """Give back what was preallocated and not written: after the end, and long zero runs."""
    os.ftruncate(partial.fd, contents.stream.end)
    least = _WORTH_PUNCHING // contents.page_size
    for block in contents.stream.blocks:
        for first, count in gaps.long_clear_runs(partial.fd, block, least):
            _punch(partial, (block, first, count))


def _punch(partial: Partial, run: Run) -> None:
    """Make a hole of pages that are zeros; a file system without holes keeps them."""
    block, first, count = run
    offset = block.pages_offset + first * block.page_size
    try:
        syscalls.punch_hole(partial.fd, offset, count * block.page_size)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


async def _zeros(job: SaveJob, contents: Contents) -> list[Run]:
    """Return what zeros QEMU has written; none where its memory cannot be seen as it was then."""
    pid = job.facts.pid
    if job.strategy.zero_pages != "none" or job.then == "resume" or pid is None:
        return []
    ram, _ = await written.ram(job.session, pid, contents.stream)
    if ram is None:
        return []
    least = _WORTH_PUNCHING // contents.page_size
    limit = cost.search_limit(job.took())
    search = functools.partial(written_zeros.find, ram, contents.stream, least, limit)
    try:
        found = await blocking.call(search)
        # A guest that another client has resumed never comes back to this state.
        state = await guest_state.run_state(job.session)
    except (OSError, errors.MonitorError) as error:
        _log.info("%s: zeros that were written remain: %s", job.path, error)
        return []
    return found if state == RunState.POSTMIGRATE else []


def _is_rewritten(job: SaveJob, contents: Contents, outcome: Outcome) -> bool:
    """Return whether pages were written that are unused now: there may be no hole in their place.

    QEMU counts each page as often as it writes it.
    """
    return job.live or outcome.ram.normal > sum(contents.used_pages)


def _longest_gap(job: SaveJob, partial: Partial, contents: Contents) -> int:
    """Return how many pages the gaps may have that are filled; 0 for none."""
    if job.request.settings.prefer == "space":
        return 0
    figures = learning.cached(job.state, job.directory.fd) or probe.TYPICAL
    used = sum(contents.used_pages)
    if not joining.may_gain(used, figures):
        return 0
    return joining.longest(gaps.count(partial.fd, contents.stream), used, figures)


def _change(
    job: SaveJob,
    partial: Partial,
    proven: tuple[Contents, Written],
    zeros: list[Run],
    most: int,
) -> None:
    """Dig holes for ``zeros``, and fill gaps of at most ``most`` pages.

    Raises OSError; ValueError where what is noted does not fit.
    """
    contents, found = proven
    data = contents.data_bytes
    _note(job, partial, found, data)
    for run in zeros:
        block, first, count = run
        # In this order no used page is in a hole, wherever it stops.
        syscalls.write_all(partial.fd, bytes(count // 8), block.bitmap_offset + first // 8)
        _punch(partial, run)
        data -= count * block.page_size
    if most:
        _note(job, partial, found, data)
        for block in contents.stream.blocks:
            gaps.fill(partial.fd, block, most)


def _note(job: SaveJob, partial: Partial, found: Written, data_bytes: int) -> None:
    """Note what was proved, and how much data QEMU wrote, which the bitmaps will not tell."""
    job.metadata = {**job.metadata, "written": found.as_dict(), "data_bytes": data_bytes}
    partial.note(job.metadata)
