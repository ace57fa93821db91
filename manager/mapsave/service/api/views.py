"""What the service shows of guests and jobs."""

from mapsave import errors
from mapsave.config import Guest
from mapsave.jobs.job import Job
from mapsave.service import job_files
from mapsave.service.scheduler import as_time
from mapsave.service.service import Service
from mapsave.strict_json import Facts


def guests(service: Service) -> list[Facts]:
    """Return a line for each guest of the configuration; no guest is asked anything."""
    busy = _busy(service)
    return [_guest(guest, busy.get(guest.name)) for guest in service.config.guests.values()]


async def guest(service: Service, name: str) -> Facts:
    """Return one guest with its images and its last operations.

    Raises UnknownGuest, ServiceBusy.
    """
    found = service.config.guests.get(name)
    if found is None:
        raise errors.UnknownGuest(f"no guest {name!r} is configured")
    images = await service.pages.of_guest(name)
    last = await service.operations.find(guest=name, limit=10)
    return {
        **_guest(found, _busy(service).get(name)),
        "images": images,
        "operations": [each.as_dict() for each in last],
    }


def _busy(service: Service) -> dict[str | None, str]:
    """Return the operations that save or restore a guest just now, by its name."""
    return {
        each.guest: each.id
        for each in service.operations.all_under_way()
        if each.kind in ("save", "restore")
    }


def _guest(guest: Guest, busy: str | None) -> Facts:
    kind = next(kind for kind in ("qmp", "libvirt", "emulator") if getattr(guest, kind) is not None)
    address = {"qmp": str(guest.qmp), "libvirt": None, "emulator": None}[kind]
    if guest.libvirt is not None:
        address = f"{guest.libvirt.uri}#{guest.libvirt.domain}"
    return {
        "name": guest.name,
        "kind": kind,
        "address": address,
        "policy": guest.policy,
        "priority": guest.priority,
        "launch": bool(guest.launch) or kind != "qmp",
        "operation": busy,
    }


async def jobs(service: Service) -> Facts:
    """Return a line for each job, and the files that could not be loaded."""
    lines = [await job(service, each) for each in service.jobs]
    return {"jobs": lines, "broken": [each.line() for each in service.jobs.broken]}


async def job(service: Service, job: Job) -> Facts:
    """Return one job: what it saves, when it ran, and when it runs next."""
    runs = await service.operations.find(kind="job", job=job.name, limit=1)
    return {
        **job_files.line(job, service.config),
        "next_run": as_time(service.scheduler.next_run(job.name)),
        "last_run": runs[0].as_dict() if runs else None,
    }
