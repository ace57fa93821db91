"""Prove an image before it is committed: load it, and compare its pages with the guest's RAM."""

from __future__ import annotations

import os

from mapsave import errors
from mapsave.image import piece_reader
from mapsave.image.image import Partial
from mapsave.image.metadata import ProofPart
from mapsave.image.validation import Contents
from mapsave.migration import guest_state, progress
from mapsave.migration.outgoing import Outcome
from mapsave.migration.run_states import RunState
from mapsave.operations import digesting, prove, save_commit, written
from mapsave.operations.save_transfer import SaveJob
from mapsave.proof.pages import Comparison

_SUFFIX = ".unproven"
_GONE = "QEMU had exited, so the image is all there is of its guest, and was kept"


async def prove_image(
    job: SaveJob, partial: Partial, outcome: Outcome | None, contents: Contents
) -> None:
    """Prove the image as the save is to; note how. Where QEMU has died, a warning says why not.

    Raises NotProven and its like with the image removed, or kept aside; as
    ``save_commit.read_back``.
    """
    given = job.means
    assert given is not None
    job.phases.enter("prove")
    opened = partial.as_image(job.partial_path, job.metadata)
    subject = prove.Subject(opened, contents, job.guest, given)
    phases = progress.Phases()
    part: ProofPart = {"by": "load"}
    try:
        done = await prove.proven(given.config, subject, phases)
        part |= {"qemu": done["qemu"]["version"], "devices": len(done["devices"])}
        if job.request.settings.prove == "pages" and outcome is not None:
            phases.enter("pages")
            compared = await _compare(job, partial, outcome, contents)
            seconds = phases.seconds()["pages"]
            part |= {"by": "pages", "compared_bytes": compared, "compare_s": seconds}
    except errors.NotProven as error:
        if outcome is None:
            job.unproven = f"the image could not be proven: {error.message}; {_GONE}"
            return
        _keep_aside(job, partial, error)
        raise
    part["took_s"] = round(phases.total, 6)
    job.metadata = {**job.metadata, "proof": part}


def _keep_aside(job: SaveJob, partial: Partial, error: errors.NotProven) -> None:
    if not job.request.settings.keep_unproven:
        return
    name = f"{job.name}{_SUFFIX}"
    try:
        partial.set_aside(name)
    except OSError as refused:
        error.message += f"; its image could not be kept: {refused.strerror}"
    else:
        kept = os.path.join(job.directory.path, name)
        error.message += f"; its image was kept as {kept!r}"
        error.data = {**error.data, "unproven": kept}


async def _compare(job: SaveJob, partial: Partial, outcome: Outcome, contents: Contents) -> int:
    """Compare all pages with the guest's RAM; digests are taken of the same reading.

    Returns how many bytes of RAM were read. Raises PagesDiffer, GuestContinued.
    """
    stream, pid = contents.stream, job.facts.pid
    assert pid is not None  # preflight has seen it
    ram, why = await written.ram(job.session, pid, stream)
    if ram is None:
        raise errors.NotProven(f"the image's pages could not be compared with RAM: {why}")
    addresses = {name: block.address for name, block in ram.blocks.items()}
    known = {name: address for name, address in addresses.items() if address is not None}
    comparison = Comparison(partial.fd, stream, pid, known)
    takes_digests = job.request.settings.digests != "off"

    def compare(watch: digesting.Watch) -> None:
        watch.begin(os.fstat(partial.fd).st_blocks * 512)
        if not (takes_digests and partial.take_digests(watch.note, comparison.put)):
            size = os.fstat(partial.fd).st_size
            piece_reader.read(partial.fd, stream.offset, size, comparison.put, watch.note)
        comparison.finish(watch.note)

    async with save_commit.reading_back(job, outcome, job.facts.memory.total):
        try:
            await digesting.watched(compare, job.phases)
        except errors.PagesDiffer:
            state = await guest_state.run_state(job.session)
            if state == RunState.POSTMIGRATE:
                raise
            # Then they differ, and rightly.
            raise save_commit.continued(job, state) from None
    return comparison.compared
