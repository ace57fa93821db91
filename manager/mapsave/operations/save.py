"""Save a guest: preflight, create the partial image, hand the pair over, drive QEMU, commit, then.

Read ``_save`` and ``_write`` from top to bottom: that is the order in which things happen, and the
contexts they open are the order in which things are undone, whatever goes wrong.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import msgspec

from mapsave import blocking, errors, open_files, shielded, units
from mapsave.config import Config, Guest
from mapsave.image import data_digests, image, store
from mapsave.image.image import Partial
from mapsave.labels.label import Target
from mapsave.labels.labelling import Applied
from mapsave.migration import guest_state, progress
from mapsave.migration.progress import Phases, Report
from mapsave.monitor import process
from mapsave.operations import (
    aftermath,
    answering,
    attach,
    check,
    facts,
    journal,
    known_domains,
    learning,
    locks,
    managed_save,
    metadata,
    polish,
    save_commit,
    save_request,
    save_transfer,
    working_sets,
    written,
)
from mapsave.operations.begun import SaveBegun
from mapsave.operations.managed_place import Managed
from mapsave.operations.results import SaveResult
from mapsave.operations.save_request import Request
from mapsave.operations.save_transfer import SaveJob
from mapsave.operations.steps import Step
from mapsave.plan import sharing
from mapsave.plan.strategy import DEFAULT_CHANNELS


async def save(
    guest: Guest, config: Config, request: Request, report: Report = progress.silent
) -> SaveResult:
    """Save ``guest`` and return what ``mapsave save --json`` prints.

    Raises Refused or one of its kin with the guest untouched, NotPermitted, Busy, SaveFailed or one
    of its kin with the guest as it was.
    """
    phases, became = progress.Phases(report), aftermath.Aftermath()
    try:
        async with asyncio.timeout(request.timeout):
            try:
                work = _save(guest, config, request, phases, became)
                return await shielded.until_decided(work)
            except errors.PauseTooLong as error:
                if request.settings.checkpoint.above != "live":
                    raise
                became = aftermath.Aftermath()
                work = _save(guest, config, request.live_instead(), phases, became)
                done = await shielded.until_decided(work)
                done.warnings.append(f"saved live instead: {error.message}")
                return done
    except TimeoutError:
        limit = units.format_duration(request.timeout or 0)
        raise errors.SaveTimeout(
            f"guest {guest.name!r}: not saved within {limit}; the save was cancelled"
            + (f"; {became.words}" if became.words else ""),
            hint=("" if became.words else "the guest is as before; ")
            + "allow more time, or see 'mapsave check'",
        ) from None
    except asyncio.CancelledError:
        if became.words is None:
            raise
        raise errors.Interrupted(f"guest {guest.name!r}: interrupted; {became.words}") from None


async def _save(
    guest: Guest, config: Config, request: Request, phases: Phases, became: aftermath.Aftermath
) -> SaveResult:
    phases.enter("preflight")
    await answering.check(config.state, writable=True)
    async with open_files.reserved(), attach.exclusive(guest, config) as (session, monitor):
        found = await facts.gather(session, config.state)
        touched = await working_sets.at_save(config.state, found.lives_on)
        request, managed = managed_save.settled(request, found)
        async with _placed(guest, config, request, found, managed) as (held, name, share):
            preflight = check.Preflight.of(config, guest, found, held, name, request)
            await answering.within(held.path, check.all_pass, preflight)
            if preflight.shared_ram is None:
                await preflight.learn(config, measures=not request.is_urgent)
            elif request.settings.method == "auto":
                from mapsave.operations import checkpoint_forecast  # for checkpoints alone

                await checkpoint_forecast.weigh(config, preflight)
            strategy = preflight.strategy(share.most(DEFAULT_CHANNELS))
            if found.domain is not None:
                await answering.noted(known_domains.remember, config.state, found.domain)
            known = metadata.before(guest.name, found, strategy, request)
            pid, started = found.process or (None, None)
            begun = SaveBegun(
                guest=guest.name,
                monitor=monitor,
                pid=pid,
                process_started=started,
                directory=held.path,
                directory_inode=os.fstat(held.fd).st_ino,
                name=name,
                replace=request.replace,
                managed=managed is not None,
                then=request.then_for(runs=found.runs),
                prove=request.settings.prove,
                policy=request.policy.name,
                was_running=found.runs,
                settings=found.settings,
                fdset=found.free_fdset,
            )
            async with journal.operation(config.state, "save", begun) as log:
                known["recovery"] = {
                    "journal": log.path.name,
                    "boot": process.boot_id(),
                    **msgspec.to_builtins(begun),
                }
                with session.events("MIGRATION", "RESUME") as events:
                    job = SaveJob(
                        guest=guest.name,
                        session=session,
                        monitor=monitor,
                        directory=held,
                        name=name,
                        managed=managed,
                        request=request,
                        facts=found,
                        strategy=strategy,
                        labelling=preflight.labelling,
                        log=log,
                        phases=phases,
                        metadata=known,
                        fdset=found.free_fdset,
                        resumes=guest_state.ResumeWatch(events),
                        state=config.state,
                        touched=touched,
                        means=preflight.means if request.settings.prove != "none" else None,
                        shared_ram=preflight.shared_ram,
                    )
                    await answering.noted(working_sets.note_reading, config.state, found.lives_on)
                    async with aftermath.reported(job, became):
                        result = await _write(job)
                    if not share.was_shared:
                        await answering.noted(_learn_from, job)
            result.warnings += log.warnings
            return result


@contextlib.asynccontextmanager
async def _placed(
    guest: Guest, config: Config, request: Request, found: facts.Facts, managed: Managed | None
) -> AsyncIterator[tuple[store.Directory, str, sharing.Share]]:
    """Yield directory and name of the image, and its share; no other save is at that QEMU."""
    with locks.process_held(config.state, f"guest {guest.name!r}", found.process):
        placing = save_request.placed(guest, config, request, managed, reserve=True)
        async with placing as (held, name):
            with sharing.joined(held.fd) as share:
                yield held, name, share


def _learn_from(job: SaveJob) -> None:
    """Correct later predictions by how long this save took, where it was done as predicted."""
    held, checkpoint = job.directory, job.metadata.get("checkpoint")
    if checkpoint and job.then == "resume" and checkpoint["pauses"] == 1:
        predicted, paused = checkpoint["predicted_pause_s"], checkpoint["paused_s"]
        learning.note_pause(job.state, held.fd, held.path, predicted, paused)
    if job.given_up is not None:
        strategy, seconds = job.given_up.strategy, job.given_up.seconds
    else:
        strategy, seconds = job.strategy, job.took()
    plan = strategy.plan
    # Of a guest that lives on an image, what is saved is read from a disk first.
    is_limited = job.request.bandwidth or job.live or job.facts.lives_on is not None
    if plan is not None and not is_limited and plan.chosen.way == strategy.way:
        learning.note(job.state, held.fd, held.path, plan.chosen, seconds)


async def _write(job: SaveJob) -> SaveResult:
    """Create, label, let QEMU write, commit, and do what was asked for ``then``."""
    job.phases.enter("prepare")
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(_what_is_left(job))
        stack.enter_context(_save_failures(job))
        created = shielded.entered(_created(job), _leave)
        partial = await stack.enter_async_context(created)
        made.append(partial)
        target = Target(partial.fd, job.partial_path, (job.path,), job.facts.pid, "save")
        uuid = str(partial.block.uuid)
        intended = await blocking.within(blocking.ANSWER, job.labelling.intended, target)
        if intended is not None:
            await job.log.step(Step.RULES, label=intended, uuid=uuid)
        labelled = shielded.entered(job.labelling.applied(target, job.on_left))
        applied = await stack.enter_async_context(labelled)
        await job.log.step(Step.LABEL, label=applied.label, uuid=uuid)
        if job.managed is not None:
            await blocking.within(blocking.ANSWER, job.managed.give, partial.fd)
        await blocking.within(blocking.ANSWER, save_transfer.preallocate, job, partial)
        async with guest_state.put_back_at_end(
            job.session, was_running=job.facts.runs, phases=job.phases
        ) as paused:
            stack.enter_context(save_transfer.kept_if_stuck(job, partial, applied, paused))
            is_compared = job.means is not None and job.request.settings.prove == "pages"
            before = None
            if job.shared_ram is not None:
                from mapsave.operations import checkpoint

                outcome = await checkpoint.write(job, partial, applied, paused)
                before, resumes = written.NOTHING_MISSING, False  # it is resumed already
            else:
                outcome = await save_transfer.let_qemu_write(job, partial, applied, paused)
                resumes = job.then == "resume" and outcome is not None and paused.continues
            if resumes and outcome is not None and not is_compared:
                before = await save_commit.compare(job, partial, outcome)
                await _resume(job, partial, applied, paused)
            found = await save_commit.read_back(job, partial, outcome, before)
            found = await polish.polish(job, partial, outcome, found)
            if job.means is not None:
                from mapsave.operations import save_proof

                await save_proof.prove_image(job, partial, outcome, found[0])
            if resumes and is_compared:
                await _resume(job, partial, applied, paused)
            await save_commit.digest(job, partial, outcome)
            await save_commit.check_undisturbed(job, paused)
            shielded.decided()
            return await shielded.to_the_end(
                save_commit.commit(job, partial, applied, paused, found)
            )


async def _resume(
    job: SaveJob, partial: Partial, applied: Applied, paused: guest_state.Paused
) -> None:
    """Resume the guest, whose image is not committed yet. Raises SaveFailed."""
    await job.log.step(Step.RESUME)
    await save_transfer.resume(job, partial, applied, paused)


@contextlib.contextmanager
def _created(job: SaveJob) -> Iterator[Partial]:
    """Create the partial image, which is born with its label; remove it unless committed."""
    with contextlib.ExitStack() as stack:
        with job.labelling.creating(job.facts.pid):
            creating = image.creating(
                job.directory.fd,
                job.name,
                job.metadata,
                stream_offset=job.request.stream_offset,
                libvirt=metadata.libvirt_header(job.facts, job.request),
                digest_room=_digest_room(job),
            )
            partial = stack.enter_context(creating)
        yield partial


def _digest_room(job: SaveJob) -> int:
    """Return how many bytes of the header are for digests of the data."""
    if job.request.settings.digests == "off":
        return 0
    blocks = sum(block.used for block in job.facts.blocks.values())
    return data_digests.room(max(job.facts.memory.total, blocks))


def _leave(partial: Partial) -> None:
    """Note that storage which hangs keeps the partial image from being removed for now."""
    partial.is_left = not partial.is_kept


@contextlib.asynccontextmanager
async def _what_is_left(job: SaveJob) -> AsyncIterator[list[Partial]]:
    """Keep the journal where a failed save cannot remove its partial image: recovery does it."""
    made: list[Partial] = []
    try:
        yield made
    except BaseException as error:
        if not any(partial.is_left for partial in made):
            raise
        job.log.unsettled()
        if not isinstance(error, errors.GuestNotPutBack):
            with contextlib.suppress(journal.JournalUnwritable):
                await job.log.step(Step.TIDY, outcome=journal.FINISHED)
        if isinstance(error, errors.MapsaveError):
            error.message += f"; its partial image {job.partial_path!r} could not be removed"
            also = "run 'mapsave recover' once the disk works again: it removes the partial image"
            error.hint = f"{error.hint}; {also}" if error.hint else also
        raise


@contextlib.contextmanager
def _save_failures(job: SaveJob) -> Iterator[None]:
    """Turn what the file system or the monitor refuses into an error that says what failed."""
    try:
        yield
    except FileExistsError:
        raise errors.ImageExists(
            f"another process created {job.path!r} during the save", hint="choose another name"
        ) from None
    except journal.JournalUnwritable as error:
        raise errors.of_os_error(
            error,
            f"cannot write the journal {error.filename!r}: {error.strerror}",
            error.filename,
            os.W_OK,
            otherwise=errors.SaveFailed,
            hint="free some space there, or set 'state:' in the configuration",
            errno=error.errno,
        ) from None
    except OSError as error:
        raise errors.of_os_error(
            error,
            f"cannot write {job.partial_path!r}: {error.strerror}",
            job.partial_path,
            os.R_OK | os.W_OK,
            otherwise=errors.SaveFailed,
            errno=error.errno,
        ) from None
    except errors.GuestNotPutBack:
        job.log.unsettled()  # `mapsave recover` tries again
        raise
    except (ValueError, errors.MonitorError) as error:
        raise errors.SaveFailed(f"cannot save to {job.partial_path!r}: {error}") from None
