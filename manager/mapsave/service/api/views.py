"""What the service shows of guests and jobs."""

from __future__ import annotations

from mapsave import errors
from mapsave.config import Guest
from mapsave.image import store
from mapsave.jobs.job import Job
from mapsave.operations import images, restored_notes
from mapsave.service import job_files
from mapsave.service.scheduler import as_time
from mapsave.service.service import Service
from mapsave.strict_json import Facts


def guests(service: Service) -> list[Facts]:
    """Return a line for each guest of the configuration; no guest is asked anything."""
    busy = {
        each.guest: each.id
        for each in service.operations.all_under_way()
        if each.kind in ("save", "restore")
    }
    return [_guest(guest, busy.get(guest.name)) for guest in service.config.guests.values()]


async def guest(service: Service, name: str) -> Facts:
    """Return one guest with its images and its last operations.

    Raises UnknownGuest, ServiceBusy.
    """
    found = next((line for line in guests(service) if line["name"] == name), None)
    if found is None:
        raise errors.UnknownGuest(f"no guest {name!r} is configured")
    listed = await image_listing(service)
    last = await service.operations.find(guest=name, limit=10)
    return {
        **found,
        "images": [line for line in listed["images"] if line["guest"] == name],
        "operations": [each.as_dict() for each in last],
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


async def image_listing(service: Service) -> images.Listing:
    """Return the images of the image directory, as ``mapsave list --json`` does.

    Raises ServiceBusy, BadDirectory.
    """

    def look() -> images.Listing:
        with store.directory(service.config.images, create=True) as held:
            return images.listing(held, restored_notes.noted(service.config.state))

    return await service.looking.run(look)


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
