"""What each kind of operation does: the same functions that the command line calls.

A new kind is a request in ``api/requests.py``, and here a function and its row in ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from mapsave.evacuation import restore_all, save_all, save_run
from mapsave.hooks import around, recover
from mapsave.image import store
from mapsave.jobs import engine, retention
from mapsave.migration.progress import silent
from mapsave.operations import discard, inspect, preview, restore_request, save_request
from mapsave.service import permission
from mapsave.service.api import requests
from mapsave.service.operation import Operation
from mapsave.service.peers import Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mapsave.config import Config, Guest
    from mapsave.history.rows import Facts
    from mapsave.jobs.job import Job
    from mapsave.migration.progress import Progress, Report
    from mapsave.service.peers import Peer
    from mapsave.service.service import Service

R = TypeVar("R", bound=requests.Request)

_SCHEDULER = "the schedule"


@dataclasses.dataclass(frozen=True)
class Task:
    """An operation at work: its service, how it is shown, and who requested it."""

    service: Service
    active: Operation
    peer: Peer

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.service.config

    def path_of(self, image: str) -> str:
        """Return the path of an image. Raises NotPermitted."""
        return permission.path_of(self.config, image)

    def report(self) -> Report:
        """Return what notes the progress of the operation."""
        return _report(self.service, self.active)


@dataclasses.dataclass(frozen=True)
class Kind(Generic[R]):
    """One kind of operation.

    ``function`` returns what the command of that name prints with ``--json``, and raises what that
    command raises. ``role`` is needed to request it. ``notifies``: webhooks are sent its outcome.
    With ``waits`` the function itself says when its turn has come.
    """

    request: type[R]
    role: Role
    function: Callable[[Task, R], Awaitable[Facts]]
    notifies: bool = False
    waits: bool = False


def allow(peer: Peer, request: requests.Request, config: Config) -> None:
    """Raise RoleMissing unless the peer may request that."""
    peer.require(KINDS[request.kind].role, f"ask for {request.kind!r}")
    permission.check(peer, request, config)


def check_known(service: Service, request: requests.Request) -> None:
    """Raise UnknownGuest or UnknownJob before anything is begun for what is not there."""
    if request.job is not None:
        service.jobs.get(request.job)
    guests = [request.guest]
    if isinstance(request, requests.Restore):
        guests.append(request.restore.guest)
    for guest in guests:
        if guest is not None:
            service.config.guest(guest)


async def perform(
    service: Service, active: Operation, request: requests.Request, peer: Peer
) -> Facts:
    """Do what ``peer`` requests; return the result. Raises what the function of the kind raises."""
    kind = KINDS[request.kind]
    if not kind.waits:
        await service.operations.starts(active)
    return await kind.function(Task(service, active, peer), request)


async def start_job(service: Service, job: Job) -> str | None:
    """Begin a run of a job by the schedule; return why it is left out where that is so."""
    under_way = service.operations.under_way()
    if any(each.kind == "job" and each.job == job.name for each in under_way):
        return "its previous run is still in progress"
    # The host is about to go down: the job's own saves would stand in the way of that.
    if any(each.kind == "save-all" and not each.request.get("dry_run") for each in under_way):
        return "all guests are being saved"

    async def work(active: Operation) -> Facts:
        await service.operations.starts(active)
        return await _run_loaded(service, active, job)

    new = Operation("job", _SCHEDULER, {"job": job.name}, job=job.name)
    await service.operations.begin(new, work)
    return None


async def _save(task: Task, request: requests.Save) -> Facts:
    config = task.config
    permission.check_bounds(task.peer, request, config)  # it may have been reloaded since
    guest = config.guest(request.guest)
    wanted = save_request.request(
        config,
        guest,
        **msgspec.structs.asdict(request.save),
        # Checked again once it is this save's turn: `allow` looked at what was there before.
        replace_only=None if task.peer.role >= Role.ADMIN else guest.name,
    )
    return await _save_in_turn(task.service, task.active, guest, wanted)


async def _save_in_turn(
    service: Service,
    active: Operation,
    guest: Guest,
    request: save_request.Request,
    job: Job | None = None,
) -> Facts:
    """Save a guest once there is a slot for it."""
    config = service.config
    with store.directory(config.images, create=True) as held:
        device = os.fstat(held.fd).st_dev
    async with service.slots.taken(device) as share:
        await service.operations.starts(active)
        limited = dataclasses.replace(request, bandwidth=share)
        more = job.hooks if job is not None else {}
        report = _report(service, active)
        done = await around.save(guest, service.config, limited, report, more=more)
        await service.operations.names_image(active, done["image"])
        return done


def _report(service: Service, active: Operation, whole: Report = silent) -> Report:
    """Return what notes how far ``active`` is, and updates ``whole``, which it is part of."""

    def report(now: Progress) -> None:
        service.operations.progressed(active, now)
        whole(now)

    return report


async def _run_job(task: Task, request: requests.RunJob) -> Facts:
    return await _run_loaded(task.service, task.active, task.service.jobs.get(request.job))


async def _run_loaded(service: Service, active: Operation, job: Job) -> Facts:
    """Run a job: each of its saves is an operation of its own, and part of this one."""

    async def saver(guest: Guest, request: save_request.Request) -> Facts:
        new = Operation(
            kind="save",
            user=active.user,
            request={"job": job.name},
            guest=guest.name,
            job=job.name,
            image=request.image,
            parent=active.id,
        )
        return await service.operations.perform(
            new, lambda child: _save_in_turn(service, child, guest, request, job)
        )

    return await engine.run(job, service.config, saver=saver)


async def _restore(task: Task, request: requests.Restore) -> Facts:
    chosen = msgspec.structs.asdict(request.restore)
    if chosen["channels"] == "auto":
        chosen["channels"] = None
    wanted = restore_request.Request(
        image=task.path_of(request.image), for_operator=task.peer.role < Role.ADMIN, **chosen
    )
    return await around.restore(task.config, wanted, task.report())


async def _check(task: Task, request: requests.Check) -> Facts:
    config = task.config
    permission.check_bounds(task.peer, request, config)
    if request.guest is None:
        return await engine.check(task.service.jobs.get(str(request.job)), config)
    guest = config.guest(request.guest)
    chosen = msgspec.structs.asdict(request.check or requests.CheckOptions())
    wanted = save_request.request(config, guest, **chosen)
    found, error = await preview.preview(guest, config, wanted)
    return {**found, "error": error.as_dict() if error is not None else None}


async def _verify(task: Task, request: requests.Verify) -> Facts:
    path = task.path_of(request.image)
    return (await task.service.verifying.run(inspect.verify, path, task.config)).as_dict()


async def _discard(task: Task, request: requests.Discard) -> Facts:
    path = task.path_of(request.image)
    return discard.discard(task.config, path, unrestored=request.unrestored)


async def _recover(task: Task, request: requests.Recover) -> Facts:
    if request.dry_run:
        return await recover.recover(task.config, dry_run=True)
    return await task.service.recovery.once()


async def _prune(task: Task, request: requests.Prune) -> Facts:
    job = task.service.jobs.get(request.job)
    lines = await retention.prune(job, task.config, dry_run=request.dry_run)
    return retention.summary(job, lines, dry_run=request.dry_run)


async def _save_all(task: Task, request: requests.SaveAll) -> Facts:
    """Save all guests; no slots and no bandwidth: the host is about to go down."""
    service, active = task.service, task.active

    async def saver(guest: Guest, wanted: save_request.Request, report: Report) -> Facts:
        async def work(child: Operation) -> Facts:
            await service.operations.starts(child)
            whole = _report(service, child, report)
            done = await around.save(guest, service.config, wanted, whole)
            await service.operations.names_image(child, done["image"])
            return done

        new = Operation(
            kind="save",
            user=active.user,
            request={"save-all": active.id},
            guest=guest.name,
            parent=active.id,
        )
        return await service.operations.perform(new, work)

    wanted = save_run.Request(
        names=request.guests,
        libvirt=request.libvirt,
        deadline=request.deadline,
        then=request.then,
        parallel=request.parallel,
        dry_run=request.dry_run,
    )
    return await save_all.interruptible(service.config, wanted, saver=saver, report=task.report())


async def _restore_all(task: Task, request: requests.RestoreAll) -> Facts:
    """Restore what save-all saved; each restore is an operation of its own."""
    service, active = task.service, task.active

    async def restorer(wanted: restore_request.Request, report: Report) -> Facts:
        async def work(child: Operation) -> Facts:
            await service.operations.starts(child)
            return await around.restore(service.config, wanted, _report(service, child, report))

        new = Operation(
            kind="restore",
            user=active.user,
            request={"restore-all": active.id},
            guest=wanted.guest,
            image=os.path.basename(wanted.image),
            parent=active.id,
        )
        return await service.operations.perform(new, work)

    wanted = restore_all.Request(
        parallel=request.parallel, discard=request.discard, dry_run=request.dry_run
    )
    return await restore_all.restore_all(service.config, wanted, task.report(), restorer=restorer)


_OPERATOR, _ADMIN = Role.OPERATOR, Role.ADMIN
KINDS: dict[str, Kind[Any]] = {
    requests.name_of(row.request): row
    for row in (
        Kind(requests.Save, _OPERATOR, _save, notifies=True, waits=True),
        Kind(requests.Restore, _OPERATOR, _restore, notifies=True),
        Kind(requests.Check, _OPERATOR, _check),
        Kind(requests.Verify, _OPERATOR, _verify),
        Kind(requests.Discard, _ADMIN, _discard),
        Kind(requests.Recover, _ADMIN, _recover),
        Kind(requests.RunJob, _OPERATOR, _run_job, notifies=True),
        Kind(requests.Prune, _ADMIN, _prune),
        Kind(requests.SaveAll, _OPERATOR, _save_all, notifies=True),
        Kind(requests.RestoreAll, _OPERATOR, _restore_all, notifies=True),
    )
}
