"""What each kind of operation does: the same functions that the command line calls.

A new kind is a request in ``client/requests.py``, and here a function and its row in ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from mapsave.client import requests
from mapsave.config import Config, Guest
from mapsave.hooks import around, recover
from mapsave.hooks.around import More
from mapsave.image import store
from mapsave.jobs import engine, loading, retention, scrub
from mapsave.jobs.job import Job
from mapsave.jobs.loading import AnyJob
from mapsave.jobs.scrub import Scrubbed
from mapsave.jobs.scrub_job import ScrubJob
from mapsave.migration.progress import Progress, Report, silent
from mapsave.operations import (
    answering,
    discard,
    inspect,
    pins,
    preview,
    restore_request,
    save_request,
    warm,
)
from mapsave.operations.results import RestoreResult, SaveResult
from mapsave.service import permission
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

    async def path_of(self, image: str) -> str:
        """Return the path of an image. Raises NotPermitted, BadDirectory."""
        config = self.config
        return await answering.within(config.images, permission.path_of, config, image)

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


def allowed(role: Role) -> list[str]:
    """Return the kinds of operations that ``role`` may request."""
    return [name for name, kind in KINDS.items() if role >= kind.role]


async def allow(peer: Peer, request: requests.Request, config: Config) -> None:
    """Raise RoleMissing unless the peer may request that, BadDirectory if images cannot say."""
    peer.require(KINDS[request.kind].role, f"ask for {request.kind!r}")
    is_about_image = isinstance(request, requests.Restore | requests.Clone) or (
        isinstance(request, requests.Save) and request.save.replace
    )
    if is_about_image:
        await answering.within(config.images, permission.check, peer, request, config)
    else:
        permission.check(peer, request, config)


def check_known(service: Service, request: requests.Request) -> None:
    """Raise UnknownGuest or UnknownJob before anything is begun for what is not there."""
    if request.job is not None:
        service.jobs.get(request.job)
    guests = [request.guest]
    if isinstance(request, requests.Restore):
        guests.append(request.restore.guest)
    if isinstance(request, requests.Clone):
        guests.append(request.clone.guest)
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


async def start_job(service: Service, job: AnyJob) -> str | None:
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
        note=request.save.note,
        replace=request.save.replace,
        in_use=request.save.in_use,
        timeout=request.save.timeout,
        bandwidth=request.save.bandwidth or 0,
        # Checked again once it is this save's turn: `allow` looked at what was there before.
        replace_only=guest.name if task.for_operator else None,
    )
    return (await _save_in_turn(task, guest, wanted)).as_dict()


async def _save_in_turn(
    task: Task,
    guest: Guest,
    request: save_request.Request,
    whole: Report = silent,
    more: More = _NO_MORE,
) -> SaveResult:
    """Save a guest once there is a slot for it."""
    images = task.config.images
    device = await answering.within(images, _device, images)
    async with task.service.slots.acquire(device) as share:
        await task.begins()
        limits = [each for each in (share, request.bandwidth) if each]
        limited = dataclasses.replace(request, bandwidth=min(limits, default=0))
        return await task.save(guest, limited, whole, more=more)


def _device(images: Path) -> int:
    """Return the file system of the image directory, which is made if it is missing."""
    with store.directory(images, create=True) as held:
        return os.fstat(held.fd).st_dev


async def _run_job(task: Task, request: requests.RunJob) -> Facts:
    return await _run_loaded(task, task.service.jobs.get(request.job))


async def _run_loaded(task: Task, job: AnyJob) -> engine.Run | Scrubbed:
    if isinstance(job, ScrubJob):
        service = task.service
        ended, pauses = service.metrics.scrubbed, service.moves_guests
        return await scrub.run(job, task.config, pauses=pauses, ended=ended, report=task.report())
    return await _run_saving(task, job)


async def _run_saving(task: Task, job: Job) -> engine.Run:
    """Run a job: each of its saves is an operation of its own, and part of this one."""

    async def saver(guest: Guest, request: save_request.Request, whole: Report) -> SaveResult:
        asked = {"job": job.name}
        new = Operation("save", "", asked, guest=guest.name, job=job.name, image=request.image)

        async def work(child: Task) -> SaveResult:
            return await _save_in_turn(child, guest, request, whole, job.hooks)

        return await task.part(new, work)

    return await engine.run(job, task.config, saver=saver, report=task.report())


async def _restore(task: Task, request: requests.Restore) -> Facts:
    chosen = msgspec.structs.asdict(request.restore)
    path = await task.path_of(request.image)
    wanted = restore_request.Request(image=path, for_operator=task.for_operator, **chosen)
    return (await around.restore(task.config, wanted, task.report())).as_dict()


async def _clone(task: Task, request: requests.Clone) -> Facts:
    """Start clones of an image; each is a restore, and an operation of its own."""
    from mapsave.evacuation import clones

    restorer = _restorer(task, {"clone": task.active.id})
    chosen = msgspec.structs.asdict(request.clone)
    path = await task.path_of(request.image)
    wanted = clones.Request(image=path, for_operator=task.for_operator, **chosen)
    return {**await clones.clone(task.config, wanted, restorer, task.report())}


def _restorer(task: Task, asked: Facts) -> Callable[..., Awaitable[RestoreResult]]:
    """Return what restores an image in an operation of its own, a part of the task's."""

    async def restorer(wanted: restore_request.Request, whole: Report) -> RestoreResult:
        async def work(child: Task) -> RestoreResult:
            await child.begins()
            return await around.restore(child.config, wanted, child.report(whole))

        image = os.path.basename(wanted.image)
        new = Operation("restore", "", asked, guest=wanted.guest, image=image)
        return await task.part(new, work)

    return restorer


async def _check(task: Task, request: requests.Check) -> Facts:
    permission.check_bounds(task.peer, request, task.config)
    if request.guest is None:
        job = task.service.jobs.get(str(request.job))
        if isinstance(job, ScrubJob):
            return await scrub.check(job, task.config)
        return await engine.check(job, task.config)
    guest = task.config.guest(request.guest)
    chosen = msgspec.structs.asdict(request.check or requests.CheckOptions())
    wanted = save_request.request(task.config, guest, **chosen)
    found, error = await preview.preview(guest, task.config, wanted)
    return {**found, "error": error.as_dict() if error is not None else None}


async def _verify(task: Task, request: requests.Verify) -> Facts:
    path = await task.path_of(request.image)
    if not (request.data or request.add_digests):
        return await task.service.verifying.run(inspect.verify, path, task.config)
    async with task.service.reading_data:
        return await inspect.verify_data(path, task.config, task.report(), add=request.add_digests)


async def _discard(task: Task, request: requests.Discard) -> Facts:
    path = await task.path_of(request.image)
    asked = {"unrestored": request.unrestored, "in_use": request.in_use}
    work = functools.partial(discard.discard, task.config, path, **asked)
    return await answering.within(os.path.dirname(path), work)


async def _pin(task: Task, request: requests.Pin) -> Facts:
    path = await task.path_of(request.image)
    return await answering.within(task.config.images, pins.pin, task.config, path)


async def _unpin(task: Task, request: requests.Unpin) -> Facts:
    path = await task.path_of(request.image)
    return await answering.within(task.config.images, pins.unpin, task.config, path)


async def _warm(task: Task, request: requests.Warm) -> Facts:
    path = await task.path_of(request.image)
    wanted = warm.Request(request.learn, request.all, request.rate, request.timeout)
    return await warm.warm(task.config, path, wanted, task.report())


async def _recover(task: Task, request: requests.Recover) -> Facts:
    if request.dry_run:
        return await recover.recover(task.config, dry_run=True)
    return await task.service.recovery.once()


async def _prune(task: Task, request: requests.Prune) -> Facts:
    job = loading.saving(task.service.jobs.get(request.job))
    lines = await retention.prune(job, task.config, dry_run=request.dry_run, in_use=request.in_use)
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

    restorer = _restorer(task, {"restore-all": task.active.id})
    wanted = restore_all.Request(**msgspec.structs.asdict(request))
    return await restore_all.restore_all(task.config, wanted, task.report(), restorer=restorer)


_OPERATOR, _ADMIN = Role.OPERATOR, Role.ADMIN
KINDS: dict[str, Kind[Any]] = {
    requests.name_of(row.request): row
    for row in (
        Kind(requests.Save, _OPERATOR, _save, notifies=True, waits=True),
        Kind(requests.Restore, _OPERATOR, _restore, notifies=True),
        Kind(requests.Clone, _OPERATOR, _clone, notifies=True),
        Kind(requests.Check, _OPERATOR, _check),
        Kind(requests.Verify, _OPERATOR, _verify),
        Kind(requests.Discard, _ADMIN, _discard),
        Kind(requests.Pin, _OPERATOR, _pin),
        Kind(requests.Unpin, _OPERATOR, _unpin),
        Kind(requests.Warm, _OPERATOR, _warm),
        Kind(requests.Recover, _ADMIN, _recover),
        Kind(requests.RunJob, _OPERATOR, _run_job, notifies=True),
        Kind(requests.Prune, _ADMIN, _prune),
        Kind(requests.SaveAll, _OPERATOR, _save_all, notifies=True),
        Kind(requests.RestoreAll, _OPERATOR, _restore_all, notifies=True),
    )
}
