"""Restore an image: validate, find a destination, compare, hand the pair over, load, run.

Read ``_restore`` and ``_load`` from top to bottom. On every way out before the guest is in, a
destination that we started is ended, and the image is as it was.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import AsyncIterator

from mapsave import blocking, errors, open_files, shielded, together, units
from mapsave.config import Config
from mapsave.image import descriptors, image
from mapsave.image.validation import Contents
from mapsave.labels import labelling
from mapsave.labels.label import Problem, Target
from mapsave.labels.policy import Policy
from mapsave.migration import guest_state, incoming, parameters, progress, stall
from mapsave.migration.run_states import RunState
from mapsave.monitor import fdset, process
from mapsave.monitor.session import Session
from mapsave.operations import (
    answering,
    bounds,
    clone_notes,
    destination,
    destination_choice,
    disks,
    giving_up,
    handing,
    hardware,
    images,
    inspect,
    instant,
    journal,
    kept,
    known_machines,
    limits,
    locks,
    lost,
    managed_save,
    reading_first,
    restore_labels,
    restore_plan,
    restored_notes,
    save_request,
    trust,
    whereabouts,
)
from mapsave.operations.begun import RestoreBegun
from mapsave.operations.destination_choice import NOTHING, Beside
from mapsave.operations.restore_request import Request
from mapsave.operations.results import RestoreResult
from mapsave.operations.steps import Step
from mapsave.plan import sharing
from mapsave.plan.strategy import ReadStrategy

_log = logging.getLogger(__name__)

_RUNNING = frozenset((RunState.RUNNING, RunState.SUSPENDED))


@dataclasses.dataclass(frozen=True)
class _Job:
    """One restore under way: everything that was settled before its destination was started."""

    config: Config
    request: Request
    opened: image.Image
    contents: Contents
    guest: str
    policy: Policy
    log: journal.Journal
    phases: progress.Phases
    planned: restore_plan.Planned
    share: sharing.Share

    def handed(self, target: destination.Destination) -> handing.Handed:
        """Return what is handed to its user."""
        return handing.Handed(self.config, self.opened, target, self.log, self.request.is_clone)

    @property
    def runs(self) -> bool:
        """Whether the guest is to run."""
        if self.request.run == "as-saved":
            return str(self.opened.metadata.get("run_state")) in _RUNNING
        return self.request.run == "run"


async def restore(
    config: Config,
    request: Request,
    report: progress.Report = progress.silent,
    beside: Beside = NOTHING,
) -> RestoreResult:
    """Restore ``request.image`` and return what ``mapsave restore --json`` prints.

    What is done ``beside`` it is begun where RAM is mapped, and may go on after that; it is the
    caller's to end.
    Raises InvalidImage or one of its kin, Refused or one of its kin, NotPermitted, Busy,
    RestoreFailed or one of its kin; the image is then as it was.
    """
    phases = progress.Phases(report)
    try:
        async with asyncio.timeout(request.timeout), open_files.reserved():
            return await shielded.until_decided(_restore(config, request, phases, beside))
    except TimeoutError:
        raise errors.RestoreTimeout(
            f"{request.image!r}: not restored within {units.format_duration(request.timeout or 0)}"
        ) from None
    except errors.MonitorError as error:
        raise errors.RestoreFailed(error.message) from None
    except journal.JournalUnwritable as error:
        raise errors.of_os_error(
            error,
            f"cannot write the journal {error.filename!r}: {error.strerror}; the guest was not "
            "resumed, and the image is as before",
            error.filename,
            os.W_OK,
            otherwise=errors.RestoreFailed,
            hint="free some space there, or set 'state:' in the configuration",
        ) from None


async def _restore(
    config: Config, request: Request, phases: progress.Phases, beside: Beside
) -> RestoreResult:
    phases.enter("validate")
    path = images.resolve(request.image, config)
    async with _opened(path, request) as opened:
        await answering.check(config.state, writable=True)
        key = locks.image_key(opened.block.uuid)
        with (
            locks.held(config.state, f"image {opened.path!r}", key, shared=request.is_clone),
            sharing.joined(opened.fd) as share,
        ):
            # Another restore may have marked it between our reading and our lock.
            opened.reread()
            if opened.has_lost_metadata:
                lost.check(opened, request)
            name = request.guest or bounds.owner(opened.metadata) or "guest"
            if request.for_operator:
                bounds.check_clone(config, opened.metadata, request.guest, opened.path)
                bounds.check_policy(config, name, request.policy)
            # Before a destination is started: a policy file may be broken.
            policy = save_request.policy_of(config, config.named(name), request.policy)
            if not request.trust_image:
                trust.check_image(opened, trust.users(policy) | _managed_by(config, opened))
            contents, warnings = await _validated(opened)
            if not request.again:
                restored_notes.check_unused(config.state, opened)
            warnings += await _disks(opened)
            settings = request.settings(config, name)
            verification = reading_first.Verification(
                config.state, opened, phases, is_wanted=settings.verify_data
            )
            warnings += await verification.prepared(
                force=request.force, is_loaded_elsewhere=request.through_libvirt
            )
            for text in warnings:
                _log.warning("%s", text)
            planned = await restore_plan.plan(
                config, settings, opened, contents, restore_plan.part(share)
            )
            phases.enter("read" if request.through_libvirt else "start")
            begun = RestoreBegun(
                image=os.path.realpath(path),
                guest=name,
                through_libvirt=request.through_libvirt,
                is_clone=request.is_clone,
            )
            async with journal.operation(config.state, "restore", begun) as log:
                asked = destination_choice.Asked(
                    config=config,
                    request=planned.settled(request),
                    settings=settings,
                    opened=opened,
                    contents=contents,
                    name=name,
                    policy=policy,
                    beside=beside,
                    verify=verification.verify,
                )
                job = _Job(
                    config=config,
                    request=request,
                    opened=opened,
                    contents=contents,
                    guest=name,
                    policy=policy,
                    log=log,
                    phases=phases,
                    planned=planned,
                    share=share,
                )
                async with destination_choice.chosen(asked, log) as target:
                    done = await _load(job, target, beside)
            done.verified_bytes = verification.verified
            done.warnings += [*log.warnings, *warnings]
            return done


def _managed_by(config: Config, opened: image.Image) -> frozenset[int]:
    """Return who owns the directory of a managed save, whom libvirt trusts with what is in it."""
    note = whereabouts.managed_save_of(config.state, opened)
    if note is None or os.path.realpath(opened.path) != note.image:
        return frozenset()
    return frozenset((os.stat(os.path.dirname(note.image)).st_uid,))


@contextlib.asynccontextmanager
async def _opened(path: str, request: Request) -> AsyncIterator[image.Image]:
    """Open the image. Raises as ``image.opened``, UnreadableImage where its storage hangs."""
    with descriptors.reading(path):
        opening = image.opened(path, without_metadata=request.without_metadata)
        async with contextlib.AsyncExitStack() as stack:
            opened = await stack.enter_async_context(shielded.entered(opening))
            held = stack.pop_all()
    async with held:
        yield opened


async def _validated(opened: image.Image) -> tuple[Contents, list[str]]:
    """Return its structure, and warnings. Raises as ``Image.validate`` does."""
    with descriptors.reading(opened.path):
        async with blocking.limited(stall.limit(opened.allocated)):
            contents = await blocking.call(opened.validate)
            if not inspect.has_lost_blocks(opened, contents):
                return contents, []
            return contents, await blocking.call(inspect.warnings_of_holes, opened, contents)


async def _disks(opened: image.Image) -> list[str]:
    try:
        return await blocking.within(blocking.ANSWER, disks.changes, opened)
    except blocking.Hangs as error:
        return [f"the disks could not be compared with what they were: {error.strerror}"]


async def _load(job: _Job, target: destination.Destination, beside: Beside) -> RestoreResult:
    """Compare, label, hand over, load, mark the image, and let the guest run if it ran."""
    session, opened, contents, phases = target.session, job.opened, job.contents, job.phases
    # Asked before the image is marked.
    about = await answering.within(opened.path, lambda: opened.warnings)
    if opened.has_lost_metadata:
        about += lost.not_compared(opened, runs=job.runs)
    left: list[Problem] = []
    chosen = job.planned.strategy
    if target.is_loaded:
        pid, started = _process(session)
        await job.log.step(Step.LOADED, pid=pid, process_started=started)
        here = await known_machines.query(session, job.config.state)
        target.warnings += hardware.compare(here.hardware, opened.metadata, force=job.request.force)
    else:
        phases.enter("compare")
        takes = await destination.compare(
            target, opened, contents, job.config.state, force=job.request.force
        )
        domain = await session.domain()
        if domain is not None and not domain.is_transient:
            managed_save.check_no_other(opened, domain.name, session.pid)
        labels = save_request.policy_labelling(job.policy, domain)
        aim = Target(opened.fd, opened.path, (), session.pid, "restore")
        # Each of several clones would restore the label that the one before it has set; what a
        # clone maps, its QEMU has opened by now.
        labelled = restore_labels.applied(labels, aim, job.log)
        if domain is None:
            await clone_notes.note(job.config, job.guest, target)
        async with contextlib.nullcontext(left) if job.request.is_clone else labelled as left:
            phases.enter("read")
            chosen = await _transfer(job, target, takes)
    if beside.verifying is not None:
        beside.verifying.check()
    phases.enter("run")
    shielded.decided()
    state = await shielded.to_the_end(handing.to_user(job.handed(target), runs=job.runs))
    if not job.log.is_settled:
        # The guest is its user's from here on: `mapsave recover` leaves it alone.
        with contextlib.suppress(OSError):
            await job.log.step(Step.TIDY)
    seconds = phases.seconds()
    is_read = not target.is_loaded and not target.mapped
    done = RestoreResult(
        image=opened.path,
        guest=job.guest,
        run_state=state,
        duration_s=round(phases.total, 6),
        downtime_s=_downtime(opened) if job.runs else None,
        bytes_per_s=_rate(contents, target, seconds["read"]),
        ram_bytes=contents.stream.ram_bytes,
        data_bytes=contents.data_bytes,
        phases_s=seconds,
        strategy=chosen.as_dict(),
        # libvirt starts its domain and reads the image in one, which was not predicted.
        plan=None if not is_read else restore_plan.outcome(chosen, seconds["read"]),
        reasons={**chosen.reasons, **_why_read(target)},
        instant=bool(target.mapped),
        shared_file=target.has_ram_file,
        monitor=session.address,
        pid=session.pid,
        warnings=[*(problem.text for problem in left), *about, *target.warnings],
    )
    if is_read:
        await restore_plan.learn_from(job.config, opened, chosen, job.share, seconds["read"])
    return done


def _rate(contents: Contents, target: destination.Destination, took: float) -> int:
    """Return the bytes per second that were read; 0 where RAM is mapped, and is read later."""
    return round(contents.data_bytes / took) if took and not target.mapped else 0


def _why_read(target: destination.Destination) -> dict[str, str]:
    """Return why the image was read, not mapped, and why RAM is no shared file."""
    found = {} if target.mapped else {"instant": "; ".join(target.why_not_instant)}
    return found | ({"shared_file": target.why_no_ram_file} if target.why_no_ram_file else {})


def _downtime(opened: image.Image) -> float | None:
    """Return for how many seconds the guest was away, by the clocks of the two hosts."""
    paused = opened.metadata.get("paused_at")
    return round(time.time() - float(paused), 3) if isinstance(paused, int | float) else None


def _process(session: Session) -> tuple[int | None, int | None]:
    return session.pid, process.start_time(session.pid) if session.pid else None


async def _transfer(
    job: _Job, target: destination.Destination, takes: limits.Footprint
) -> ReadStrategy:
    """Hand the pair over and have QEMU load; return how: by as many channels as limits allow."""
    session, opened = target.session, job.opened
    chosen = job.planned.limited(takes)
    if target.mapped:
        chosen = chosen.of_stub()
    watch = stall.Watch(job.planned.settings.stall, job.contents.used_bytes, lambda: session.pid)
    async with together.group() as tasks:
        settings = tasks.create_task(parameters.query(session))
        fdsets = tasks.create_task(fdset.query(session))
    found, number = settings.result(), fdset.free_id(fdsets.result())

    def dropped(words: str) -> errors.LabelRefused:
        return labelling.describe_refusal(words, opened.fd, opened.path, session.pid)

    if target.process is not None or not target.is_ours:  # libvirt starts all of its guests with -S
        # A destination without -S would run as soon as it is loaded; `stop` makes it wait for us.
        await session.execute("stop")
    pid, started = _process(session)
    await job.log.step(Step.LOAD, fdset=number, settings=found, pid=pid, process_started=started)
    try:
        paired = instant.paired(opened, job.contents, target, direct_io=chosen.direct_io)
        async with (
            # In this order: settings are restored only once QEMU has let go of its descriptors.
            shielded.entered(paired) as pair,
            parameters.configured(session, found, chosen.parameters(), is_fresh=True),
            fdset.handed_over(session, (pair.first, pair.second), number, dropped) as path,
            giving_up.given_up(target, job.log.unsettled),
        ):
            limits.recheck(takes, chosen.channels)
            await incoming.restore(session, path, opened.block.stream_offset, watch)
            await guest_state.left(session, RunState.INMIGRATE)
        # A monitor that was lost while settings were restored: QEMU may live, and still have them.
        await guest_state.run_state(session)
        return chosen
    except errors.RestoreStalled as error:
        raise giving_up.stalled(target, error) from None
    except errors.MonitorLost as error:
        how = await giving_up.how_ended(target)
        raise errors.RestoreFailed(
            f"the destination exited while loading, {how or error.message}",
            hint="QEMU may exit or hang when the image cannot be read: see dmesg",
        ) from None
    except errors.KeptByQemu as error:
        kept.note(job.config.state, process.identity(session.pid), error.message)
        raise errors.RestoreFailed(
            kept.in_full(error),
            hint="a destination that mapsave started was stopped; shut down one that was waiting, "
            "because its migration settings were left as they are",
            **error.data,
        ) from None
    except errors.CommandRefused as error:
        labelling.raise_if_refused(error.desc, opened.fd, opened.path, session.pid)
        raise errors.RestoreFailed(f"{session.address}: {error.message}") from None
    except errors.MonitorTimeout as error:
        raise errors.RestoreFailed(f"{session.address}: {error.message}") from None
    except errors.RestoreFailed as error:
        desc = str(error.data.get("qemu_error"))
        labelling.raise_if_refused(desc, opened.fd, opened.path, session.pid)
        words = target.words()
        raise errors.RestoreFailed(
            error.message + (f" ({words})" if words else ""), **error.data
        ) from None
