"""What each kind of operation does: the same functions that the command line calls."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from mapsave import config as configuration
from mapsave import errors
from mapsave.evacuation import restore_all, save_all, save_run
from mapsave.hooks import around, recover
from mapsave.image import image, store
from mapsave.jobs import engine, retention
from mapsave.migration.progress import silent
from mapsave.operations import bounds, discard, inspect, preview, restore_request, save_request
from mapsave.service.operation import Operation
from mapsave.service.peers import Role

if TYPE_CHECKING:
    from mapsave.config import Config, Guest
    from mapsave.jobs.job import Job
    from mapsave.migration.progress import Progress, Report
    from mapsave.operations.save_request import Request
    from mapsave.service.peers import Peer
    from mapsave.service.service import Service

_ROLES = {
    **dict.fromkeys(("save", "restore", "check", "verify", "job", "save-all"), Role.OPERATOR),
    **dict.fromkeys(("restore-all",), Role.OPERATOR),
    **dict.fromkeys(("discard", "recover", "prune"), Role.ADMIN),
}


def allow(peer: Peer, asked: Any, config: Config) -> None:
    """Raise RoleMissing unless the peer may ask for that.

    An operator works on the guests and images that root has configured. What reaches further (any
    socket, any command, any definition) is root's.
    """
    peer.require(_ROLES[asked.kind], f"ask for {asked.kind!r}")
    for guest in _addresses(asked):
        if guest not in config.guests:
            peer.require(Role.ADMIN, f"name the guest {guest!r}, which is not configured")
    if asked.kind == "restore":
        for field in ("into", "xml", "trust_image", "trust_recorded_command"):
            if getattr(asked.restore, field):
                peer.require(Role.ADMIN, f"set {field!r} of a restore")
    if peer.role < Role.ADMIN:
        _check_bounds(asked, config)
    if asked.kind == "save" and asked.save.replace and asked.save.image is not None:
        others = _guest_of(config, asked.save.image)
        if others not in (None, asked.guest):
            peer.require(Role.ADMIN, f"replace an image of another guest, {others!r}")
    if asked.kind == "restore-all" and asked.discard:
        peer.require(Role.ADMIN, "discard images")
    if asked.kind == "save-all" and asked.libvirt is not None:
        peer.require(Role.ADMIN, "save domains that are not configured")


def _check_bounds(asked: Any, config: Config) -> None:
    """Raise RoleMissing where an operator asks for what root has set otherwise."""
    if asked.kind == "save":
        bounds.check_policy(config, asked.guest, asked.save.policy)
    elif asked.kind == "check" and asked.guest is not None:
        bounds.check_policy(config, asked.guest, asked.check.policy)
    elif asked.kind == "restore":
        guest = asked.restore.guest
        try:
            with image.opened(path_of(config, asked.image)) as found:
                bounds.check_clone(config, found.metadata, guest, asked.image)
                guest = guest or bounds.owner(found.metadata)
        except errors.RoleMissing:
            raise
        except errors.MapsaveError:
            pass  # the restore, which asks again, says what is wrong with it
        bounds.check_policy(config, guest, asked.restore.policy)


def _guest_of(config: Config, name: str) -> str | None:
    """Return whose image that is; None where there is none, or none that can be read."""
    try:
        with image.opened(path_of(config, name)) as found:
            return str(found.metadata.get("guest", {}).get("name"))
    except errors.MapsaveError:
        return None


def _addresses(asked: Any) -> list[str]:
    """Return the addresses that are asked for in place of names."""
    guests = [getattr(asked, "guest", None), *getattr(asked, "guests", ())]
    if asked.kind == "restore":
        guests.append(asked.restore.guest)
    return [each for each in guests if each and each.startswith(configuration.ADDRESSES)]


def operation(asked: Any, user: str) -> Operation:
    """Return the operation that a request makes."""
    request = asked.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    if asked.kind == "restore" and asked.restore.xml:
        request["restore"]["xml"] = "given"  # it may hold passwords
    return Operation(
        asked.kind,
        user,
        request,
        guest=getattr(asked, "guest", None),
        job=getattr(asked, "job", None),
        image=getattr(asked, "image", None),
    )


async def perform(service: Service, active: Operation, asked: Any, peer: Peer) -> dict[str, Any]:
    """Do what ``peer`` asks; return what the command of that name prints with ``--json``.

    Raises what that command raises.
    """
    if peer.role < Role.ADMIN and asked.kind in ("save", "check"):
        _check_bounds(asked, service.config)  # it may have been reloaded since `allow`
    if asked.kind == "save":
        config = service.config
        guest = config.guest(asked.guest)
        request = save_request.request(
            config,
            guest,
            **asked.save.given(),
            image=asked.save.image,
            replace=asked.save.replace,
            # Asked again once it is this save's turn: `allow` looked at what was there before.
            replace_only=None if peer.role >= Role.ADMIN else guest.name,
            timeout=asked.save.timeout,
        )
        return await save(service, active, guest, request)
    if asked.kind == "job":
        return await run_job(service, active, service.jobs.get(asked.job))
    await service.operations.starts(active)
    if asked.kind == "restore":
        return await _restore(service, active, asked, for_operator=peer.role < Role.ADMIN)
    works = {
        "check": _check,
        "verify": _verify,
        "discard": _discard,
        "recover": _recover,
        "prune": _prune,
        "save-all": _save_all,
        "restore-all": _restore_all,
    }
    return await works[asked.kind](service, active, asked)


async def save(
    service: Service, active: Operation, guest: Guest, request: Request, job: Job | None = None
) -> dict[str, Any]:
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


async def run_job(service: Service, active: Operation, job: Job) -> dict[str, Any]:
    """Run a job: each of its saves is an operation of its own, and part of this one."""

    async def saver(guest: Guest, request: Request) -> dict[str, Any]:
        new = Operation(
            *("save", active.user, {"job": job.name}),
            guest=guest.name,
            job=job.name,
            image=request.image,
            parent=active.id,
        )
        return await service.operations.perform(
            new, lambda child: save(service, child, guest, request, job)
        )

    await service.operations.starts(active)
    return await engine.run(job, service.config, saver=saver)


async def _restore(
    service: Service, active: Operation, asked: Any, *, for_operator: bool
) -> dict[str, Any]:
    chosen = asked.restore.model_dump()
    path = path_of(service.config, asked.image)
    request = restore_request.Request(image=path, for_operator=for_operator, **chosen)
    return await around.restore(service.config, request, _report(service, active))


async def _check(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    config = service.config
    if asked.job is not None:
        return await engine.check(service.jobs.get(asked.job), config)
    guest = config.guest(asked.guest)
    request = save_request.request(config, guest, **asked.check.model_dump())
    found, error = await preview.preview(guest, config, request)
    return {**found, "error": error.as_dict() if error is not None else None}


async def _verify(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    path = path_of(service.config, asked.image)
    return (await service.verifying.run(inspect.verify, path, service.config)).as_dict()


async def _discard(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    path = path_of(service.config, asked.image)
    return discard.discard(service.config, path, unrestored=asked.unrestored)


async def _recover(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    if asked.dry_run:
        return await recover.recover(service.config, dry_run=True)
    return await service.recovery.once()


async def _prune(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    job = service.jobs.get(asked.job)
    lines = await retention.prune(job, service.config, dry_run=asked.dry_run)
    return retention.summary(job, lines, dry_run=asked.dry_run)


async def _save_all(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    """Save all guests; no slots and no bandwidth: the host is about to go down."""

    async def saver(guest: Guest, request: Request, report: Report) -> dict[str, Any]:
        new = Operation(
            *("save", active.user, {"save-all": active.id}), guest=guest.name, parent=active.id
        )

        async def work(child: Operation) -> dict[str, Any]:
            await service.operations.starts(child)
            done = await around.save(
                guest, service.config, request, _report(service, child, report)
            )
            await service.operations.names_image(child, done["image"])
            return done

        return await service.operations.perform(new, work)

    request = save_run.Request(
        names=tuple(asked.guests),
        libvirt=asked.libvirt,
        deadline=asked.deadline,
        then=asked.then,
        parallel=asked.parallel,
        dry_run=asked.dry_run,
    )
    return await save_all.interruptible(
        service.config, request, saver=saver, report=_report(service, active)
    )


async def _restore_all(service: Service, active: Operation, asked: Any) -> dict[str, Any]:
    """Restore what save-all saved; each restore is an operation of its own."""

    async def restorer(request: restore_request.Request, report: Report) -> dict[str, Any]:
        image = os.path.basename(request.image)
        new = Operation(
            *("restore", active.user, {"restore-all": active.id}),
            guest=request.guest,
            image=image,
            parent=active.id,
        )

        async def work(child: Operation) -> dict[str, Any]:
            await service.operations.starts(child)
            return await around.restore(service.config, request, _report(service, child, report))

        return await service.operations.perform(new, work)

    request = restore_all.Request(
        parallel=asked.parallel, discard=asked.discard, dry_run=asked.dry_run
    )
    return await restore_all.restore_all(
        service.config, request, _report(service, active), restorer=restorer
    )


def path_of(config: Config, image: str) -> str:
    """Return the path of an image of the image directory, where no link leads out of it.

    Raises NotPermitted for a symbolic link.
    """
    path = config.images / image
    if path.is_symlink():
        raise errors.NotPermitted(
            f"{str(path)!r} is a symbolic link, which may lead out of the image directory",
            hint="name the image itself, with --local",
        )
    return str(path)


def check_known(service: Service, asked: Any) -> None:
    """Raise UnknownGuest, UnknownJob or Unsupported before anything is begun for what is not."""
    if getattr(asked, "job", None) is not None:
        service.jobs.get(asked.job)
    if getattr(asked, "guest", None) is not None:
        service.config.guest(asked.guest)
    if asked.kind == "restore" and asked.restore.guest is not None:
        service.config.guest(asked.restore.guest)
