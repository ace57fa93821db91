"""What each kind of operation does: the same functions that the command line calls.

A new kind is a request in ``api/requests.py``, and here a function and its row in ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from mapsave.config import Config, Guest
from mapsave.hooks import around, recover
from mapsave.hooks.around import More
from mapsave.image import store
from mapsave.jobs import engine, retention
from mapsave.jobs.job import Job
from mapsave.migration.progress import Progress, Report, silent
from mapsave.operations import discard, inspect, preview, restore_request, save_request
from mapsave.operations.results import RestoreResult, SaveResult
from mapsave.service import permission
from mapsave.service.api import requests
from mapsave.service.operation import Operation
from mapsave.service.peers import Peer, Role
from mapsave.service.service import Service
from mapsave.strict_json import Facts

R = TypeVar("R", bound=requests.Request)
D = TypeVar("D", SaveResult, RestoreResult)

_SCHEDULER = "the schedule"
_NO_MORE: More = {}


@dataclasses.dataclass(frozen=True)
class Task:
    """An operation at work; ``peer`` has requested it, or, without one, the schedule."""

    service: Service
    active: Operation
    peer: Peer | None = None

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.service.config

    @property
    def for_operator(self) -> bool:
        """Whether what root has configured binds who has requested it."""
        return self.peer is not None and self.peer.role < Role.ADMIN

    def path_of(self, image: str) -> str:
        """Return the path of an image. Raises NotPermitted."""
        return permission.path_of(self.config, image)

    async def begins(self) -> None:
        """Note that the operation's turn has come."""
        await self.service.operations.starts(self.active)

    def report(self, whole: Report = silent) -> Report:
        """Return what notes how far the operation is, and updates ``whole``, it being a part."""

        def report(now: Progress) -> None:
            self.service.operations.progressed(self.active, now)
            whole(now)

        return report

    async def save(
        self,
        guest: Guest,
        request: save_request.Request,
        whole: Report = silent,
        more: More = _NO_MORE,
    ) -> SaveResult:
        """Save a guest, with the hooks of the configuration and ``more``; return the result."""
        done = await around.save(guest, self.config, request, self.report(whole), more=more)
        await self.service.operations.note_image(self.active, str(done.image))
        return done

    async def part(self, new: Operation, work: Callable[[Task], Awaitable[D]]) -> D:
        """Do ``work`` in an operation that is part of this one; return its result."""
        new.user, new.parent = self.active.user, self.active.id
        results: list[D] = []

        async def perform(child: Operation) -> Facts:
            results.append(await work(Task(self.service, child, self.peer)))
            return results[0].as_dict()

        await self.service.operations.perform(new, perform)
        return results[0]


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
    kind, task = KINDS[request.kind], Task(service, active, peer)
    if not kind.waits:
        await task.begins()
    return await kind.function(task, request)


async def start_job(service: Service, job: Job) -> str | None:
    """Begin a run of a job by the schedule; return why it is left out where that is so."""
    under_way = service.operations.under_way()
    if any(each.kind == "job" and each.job == job.name for each in under_way):
        return "its previous run is still in progress"
    # The host is about to go down: the job's own saves would prevent that.
    if any(each.kind == "save-all" and not each.request.get("dry_run") for each in under_way):
        return "all guests are being saved"

    async def work(active: Operation) -> Facts:
        task = Task(service, active)
        await task.begins()
        return await _run_loaded(task, job)

    new = Operation("job", _SCHEDULER, {"job": job.name}, job=job.name)
    await service.operations.begin(new, work)
    return None


async def _save(task: Task, request: requests.Save) -> Facts:
    permission.check_bounds(task.peer, request, task.config)  # it may have been reloaded since
    guest = task.config.guest(request.guest)
    wanted = save_request.request(
        task.config,
        guest,
        **request.save.settings(),
        image=request.save.image,
        replace=request.save.replace,
        timeout=request.save.timeout,
        # Checked again once it is this save's turn: `allow` looked at what was there before.
        replace_only=guest.name if task.for_operator else None,
    )
    return (await _save_in_turn(task, guest, wanted)).as_dict()


async def _save_in_turn(
    task: Task, guest: Guest, request: save_request.Request, more: More = _NO_MORE
) -> SaveResult:
    """Save a guest once there is a slot for it."""
    with store.directory(task.config.images, create=True) as held:
        device = os.fstat(held.fd).st_dev
    async with task.service.slots.acquire(device) as share:
        await task.begins()
        limited = dataclasses.replace(request, bandwidth=share)
        return await task.save(guest, limited, more=more)


async def _run_job(task: Task, request: requests.RunJob) -> Facts:
    return await _run_loaded(task, task.service.jobs.get(request.job))


async def _run_loaded(task: Task, job: Job) -> engine.Run:
    """Run a job: each of its saves is an operation of its own, and part of this one."""

    async def saver(guest: Guest, request: save_request.Request) -> SaveResult:
        asked = {"job": job.name}
        new = Operation("save", "", asked, guest=guest.name, job=job.name, image=request.image)
        return await task.part(new, lambda child: _save_in_turn(child, guest, request, job.hooks))

    return await engine.run(job, task.config, saver=saver)


async def _restore(task: Task, request: requests.Restore) -> Facts:
    chosen = msgspec.structs.asdict(request.restore)
    if chosen["channels"] == "auto":
        chosen["channels"] = None
    wanted = restore_request.Request(
        image=task.path_of(request.image), for_operator=task.for_operator, **chosen
    )
    return (await around.restore(task.config, wanted, task.report())).as_dict()


async def _check(task: Task, request: requests.Check) -> Facts:
    permission.check_bounds(task.peer, request, task.config)
    if request.guest is None:
        return await engine.check(task.service.jobs.get(str(request.job)), task.config)
    guest = task.config.guest(request.guest)
    chosen = msgspec.structs.asdict(request.check or requests.CheckOptions())
    wanted = save_request.request(task.config, guest, **chosen)
    found, error = await preview.preview(guest, task.config, wanted)
    return {**found, "error": error.as_dict() if error is not None else None}


async def _verify(task: Task, request: requests.Verify) -> Facts:
    path = task.path_of(request.image)
    return await task.service.verifying.run(inspect.verify, path, task.config)


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
    from mapsave.evacuation import save_all, save_run

    async def saver(guest: Guest, wanted: save_request.Request, whole: Report) -> SaveResult:
        async def work(child: Task) -> SaveResult:
            await child.begins()
            return await child.save(guest, wanted, whole)

        new = Operation("save", "", {"save-all": task.active.id}, guest=guest.name)
        return await task.part(new, work)

    wanted = save_run.Request(**msgspec.structs.asdict(request))
    return await save_all.interruptible(task.config, wanted, saver=saver, report=task.report())


async def _restore_all(task: Task, request: requests.RestoreAll) -> Facts:
    """Restore what save-all saved; each restore is an operation of its own."""
    from mapsave.evacuation import restore_all

    async def restorer(wanted: restore_request.Request, whole: Report) -> RestoreResult:
        async def work(child: Task) -> RestoreResult:
            await child.begins()
            return await around.restore(child.config, wanted, child.report(whole))

        asked, image = {"restore-all": task.active.id}, os.path.basename(wanted.image)
        new = Operation("restore", "", asked, guest=wanted.guest, image=image)
        return await task.part(new, work)

    wanted = restore_all.Request(**msgspec.structs.asdict(request))
    return await restore_all.restore_all(task.config, wanted, task.report(), restorer=restorer)


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
