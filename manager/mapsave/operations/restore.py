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
from collections.abc import Iterator

from mapsave import errors, open_files, shielded, together
from mapsave.config import Config
from mapsave.image import descriptors, image
from mapsave.image.superblock import State
from mapsave.image.validation import Contents
from mapsave.labels import labelling
from mapsave.labels.label import Problem, Target
from mapsave.labels.policy import Policy
from mapsave.migration import guest_state, incoming, parameters, progress, stall
from mapsave.migration.run_states import RunState
from mapsave.monitor import fdset, process
from mapsave.monitor.session import Session
from mapsave.operations import (
    bounds,
    destination,
    destination_choice,
    disks,
    giving_up,
    handing,
    hardware,
    images,
    inspect,
    journal,
    kept,
    limits,
    locks,
    lost,
    restored_notes,
    save_request,
    trust,
)
from mapsave.operations.begun import RestoreBegun
from mapsave.operations.restore_request import Request
from mapsave.operations.results import RestoreResult
from mapsave.operations.steps import Step

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

    @property
    def runs(self) -> bool:
        """Whether the guest is to run."""
        if self.request.run == "as-saved":
            return str(self.opened.metadata.get("run_state")) in _RUNNING
        return self.request.run == "run"


async def restore(
    config: Config, request: Request, report: progress.Report = progress.silent
) -> RestoreResult:
    """Restore ``request.image`` and return what ``mapsave restore --json`` prints.

    Raises InvalidImage or one of its kin, Refused or one of its kin, NotPermitted, Busy,
    RestoreFailed or one of its kin; the image is then as it was.
    """
    phases = progress.Phases(report)
    try:
        async with asyncio.timeout(request.timeout), open_files.reserved():
            return await shielded.until_decided(_restore(config, request, phases))
    except TimeoutError:
        raise errors.RestoreTimeout(
            f"{request.image!r}: not restored within {request.timeout:g} s"
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


async def _restore(config: Config, request: Request, phases: progress.Phases) -> RestoreResult:
    phases.enter("validate")
    path = images.resolve(request.image, config)
    with image.opened(path, without_metadata=request.without_metadata) as opened:
        key = locks.image_key(opened.block.uuid)
        with locks.held(config.state, f"image {opened.path!r}", key):
            # Another restore may have marked it between our reading and our lock.
            opened.reread()
            if opened.has_lost_metadata:
                lost.check(opened, request)
            name = request.guest or bounds.owner(opened.metadata) or "guest"
            if request.for_operator:
                bounds.check_clone(config, opened.metadata, request.guest, opened.path)
                bounds.check_policy(config, name, request.policy)
            # Before a destination is started: a policy file may be broken.
            policy = save_request.policy_of(config, config.guests.get(name), request.policy)
            if not request.trust_image:
                trust.check_image(opened, trust.users(policy))
            contents = await shielded.in_thread(opened.validate)
            if not request.again and restored_notes.is_used(config.state, opened):
                raise _used_up(opened)
            warnings = await shielded.in_thread(inspect.warnings_of_holes, opened, contents)
            warnings += await shielded.in_thread(disks.changes, opened)
            for text in warnings:
                _log.warning("%s", text)
            phases.enter("read" if request.through_libvirt else "start")
            begun = RestoreBegun(
                image=os.path.realpath(path), guest=name, through_libvirt=request.through_libvirt
            )
            with journal.operation(config.state, "restore", begun) as log:
                chosen = destination_choice.chosen(config, request, opened, name, log)
                job = _Job(
                    config=config,
                    request=request,
                    opened=opened,
                    contents=contents,
                    guest=name,
                    policy=policy,
                    log=log,
                    phases=phases,
                )
                async with chosen as target:
                    done = await _load(job, target)
            done.warnings += [*log.warnings, *warnings]
            return done


def _used_up(opened: image.Image) -> errors.AlreadyRestored:
    words = "has been restored before"
    if opened.block.state is not State.RESTORED:
        words = "has been restored before, itself or a copy of it, according to the state directory"
    if opened.metadata.get("continued"):
        words = "is stale: another client resumed its guest during the save"
    return errors.AlreadyRestored(
        f"{opened.path!r} {words}",
        hint="its disks have changed since; --again restores it anyway",
    )


async def _load(job: _Job, target: destination.Destination) -> RestoreResult:
    """Compare, label, hand over, load, mark the image, and let the guest run if it ran."""
    session, opened, contents, phases = target.session, job.opened, job.contents, job.phases
    about = opened.warnings  # asked before the image is marked
    if opened.has_lost_metadata:
        about += lost.not_compared(opened, runs=job.runs)
    left: list[Problem] = []
    if target.is_loaded:
        pid, started = _process(session)
        job.log.step(Step.LOADED, pid=pid, process_started=started)
        here = await hardware.query(session)
        target.warnings += hardware.compare(here, opened.metadata, force=job.request.force)
    else:
        phases.enter("compare")
        takes = await destination.compare(target, opened, contents, force=job.request.force)
        labels = save_request.policy_labelling(job.policy, await session.domain())
        with _labelled(labels, opened, session.pid, job.log) as left:
            phases.enter("read")
            await _transfer(job, target, takes)
    phases.enter("run")
    shielded.decided()
    state = await shielded.to_the_end(
        handing.to_user(job.config, opened, target, job.log, runs=job.runs)
    )
    if left:
        # The guest is its user's from here on: `mapsave recover` leaves it alone.
        with contextlib.suppress(OSError):
            job.log.step(Step.TIDY)
    seconds = phases.seconds()
    return RestoreResult(
        image=opened.path,
        guest=job.guest,
        run_state=state,
        duration_s=round(phases.total, 6),
        downtime_s=_downtime(opened) if job.runs else None,
        bytes_per_s=round(contents.data_bytes / seconds["read"]) if seconds["read"] else 0,
        ram_bytes=contents.stream.ram_bytes,
        data_bytes=contents.data_bytes,
        phases=seconds,
        monitor=session.address,
        pid=session.pid,
        warnings=[*(problem.text for problem in left), *about, *target.warnings],
    )


@contextlib.contextmanager
def _labelled(
    labels: labelling.Labelling, opened: image.Image, pid: int | None, log: journal.Journal
) -> Iterator[list[Problem]]:
    """Label the image for QEMU to read, and take that back; both are journalled before.

    What cannot be taken back is yielded, for ``mapsave recover``. Raises LabelRefused and its kin.
    """
    left: list[Problem] = []

    def on_left(problems: list[Problem]) -> None:
        left.extend(problems)
        log.unsettled()

    directory, file = os.path.split(os.path.realpath(opened.path))
    labels.check(directory, pid, "restore", [file])
    target = Target(opened.fd, opened.path, (), pid, "restore")
    if (intended := labels.intended(target)) is not None:
        log.step(Step.LABEL, label=intended)
    with labels.applied(target, on_left):
        yield left


def _downtime(opened: image.Image) -> float | None:
    """Return for how many seconds the guest was away, by the clocks of the two hosts."""
    paused = opened.metadata.get("paused_at")
    return round(time.time() - float(paused), 3) if isinstance(paused, int | float) else None


def _process(session: Session) -> tuple[int | None, int | None]:
    return session.pid, process.start_time(session.pid) if session.pid else None


async def _transfer(job: _Job, target: destination.Destination, takes: limits.Footprint) -> None:
    session, opened = target.session, job.opened
    channels = limits.for_load(takes, job.request.channels)
    watch = stall.Watch(job.config.restore.stall, job.contents.data_bytes, lambda: session.pid)
    async with together.group() as tasks:
        settings = tasks.create_task(parameters.query(session))
        fdsets = tasks.create_task(fdset.query(session))
    found, number = settings.result(), fdset.free_id(fdsets.result())
    wanted = {
        "direct-io": descriptors.takes_direct_io(opened.fd, job.request.direct_io),
        "multifd-channels": channels,
    }

    def dropped(words: str) -> errors.LabelRefused:
        return labelling.describe_refusal(words, opened.fd, opened.path, session.pid)

    # A destination without -S would run as soon as it is loaded; `stop` makes it wait for us.
    await session.execute("stop")
    pid, started = _process(session)
    job.log.step(Step.LOAD, fdset=number, settings=found, pid=pid, process_started=started)
    try:
        with descriptors.paired(
            opened.fd, os.O_RDONLY, direct_io=bool(wanted["direct-io"])
        ) as pair:
            async with (
                # In this order: settings are restored only once QEMU has let go of its descriptors.
                parameters.configured(session, found, wanted, number),
                fdset.handed_over(session, (pair.first, pair.second), number, dropped) as path,
                giving_up.given_up(target, job.log.unsettled),
            ):
                limits.recheck(takes, channels)
                await incoming.restore(session, path, opened.block.stream_offset, watch)
                await guest_state.left(session, RunState.INMIGRATE)
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
