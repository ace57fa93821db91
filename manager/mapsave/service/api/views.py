"""What the service shows of guests, jobs, and an operation over time."""

import datetime
import time

from mapsave import blocking, errors, units
from mapsave.config import Guest
from mapsave.evacuation import guest_list
from mapsave.evacuation.guest_list import Asked
from mapsave.history.states import State
from mapsave.pictures import course
from mapsave.service import job_files, work
from mapsave.service.peers import Peer, Role
from mapsave.service.service import Service
from mapsave.strict_json import Facts

_FAILURES = 5


def caller(peer: Peer) -> Facts:
    """Return who asks, and what they may do; single requests may reach further than the role."""
    more = next((role for role in Role if role > peer.role), None)
    return {
        "user": peer.name,
        "role": peer.role.word,
        "may": work.allowed(peer.role),
        "hint": None if more is None else peer.lists.hint(more),
    }


async def guests(service: Service, peer: Peer, *, look: bool) -> Facts:
    """Return a line for each guest; only with ``look`` they are asked, and images looked up.

    Domains that are not configured are for admins alone, as they are in requests. Raises
    ServiceBusy, BadDirectory, NotPermitted.
    """
    asked, latest = await _look(service, wanted=look)
    found = [*service.config.guests.values(), *asked.clones]
    found += asked.others if peer.role >= Role.ADMIN else []
    return {
        "guests": await _lines(service, found, asked, latest),
        "unreachable": [each.as_dict() for each in asked.unreachable],
    }


async def guest(service: Service, name: str, *, look: bool) -> Facts:
    """Return one guest with its images and its last operations.

    Raises UnknownGuest, ServiceBusy, BadDirectory, NotPermitted.
    """
    found = service.config.named(name)
    if found is None:
        raise errors.UnknownGuest(f"no guest {name!r} is configured")
    asked, latest = await _look(service, wanted=look)
    of_it = [each for each in latest if each["guest"] == name]
    last = await service.operations.find(guest=name, limit=10)
    return {
        **(await _lines(service, [found], asked, of_it))[0],
        "images": await service.pages.chosen(name),
        "operations": [each.as_dict() for each in last],
    }


async def _look(service: Service, *, wanted: bool) -> tuple[Asked, list[Facts]]:
    if not wanted:
        return guest_list.NOT_ASKED, []
    return await service.guests.ask(), await service.pages.chosen(latest=True)


async def _lines(
    service: Service, found: list[Guest], asked: Asked, latest: list[Facts]
) -> list[Facts]:
    """Return the lines of guests, with the operation that saves or restores each just now."""
    busy = {
        each.guest: each.id
        for each in service.operations.all_under_way()
        if each.kind in ("save", "restore")
    }

    def lines() -> list[Facts]:
        made = guest_list.lines(found, asked, latest)
        return [{**line, "operation": busy.get(str(line["name"]))} for line in made]

    return await blocking.call(lines)  # there may be tens of thousands


async def status(service: Service) -> Facts:
    """Return how the service is, what runs and waits, what failed last, and when jobs run next."""
    active = service.operations.all_under_way()
    found: dict[str, object] = {**service.health(), "failed": [], "jobs": []}
    try:
        failed = await service.operations.find(state=State.FAILED, limit=_FAILURES)
        found["failed"] = [each.as_dict() for each in failed]
        found["jobs"] = (await jobs(service))["jobs"]
    except errors.MapsaveError as error:  # without its history it is all the more to be shown
        found |= {"status": "degraded", "reasons": [*service.reasons(), error.message]}
    return {
        **found,
        "running": [each.as_dict() for each in active if each.state != State.PENDING],
        "waiting": [each.as_dict() for each in active if each.state == State.PENDING],
    }


async def jobs(service: Service) -> Facts:
    """Return a line for each job, and the files that could not be loaded."""
    known = service.jobs  # which a reload exchanges
    lines = [job_files.line(each, known.guests[each.name]) for each in known]
    return {
        "jobs": [await _with_runs(service, line) for line in lines],
        "broken": [each.line() for each in known.broken],
    }


async def job(service: Service, name: str) -> Facts:
    """Return one job: what it saves, when it ran, and when it runs next.

    Raises UnknownJob, and what is wrong with its file.
    """
    known = service.jobs
    return await _with_runs(service, job_files.line(known.get(name), known.guests[name]))


async def _with_runs(service: Service, line: Facts) -> Facts:
    name = str(line["name"])
    next_run = service.scheduler.next_run(name)
    runs = await service.operations.find(kind="job", job=name, limit=1)
    return {
        **line,
        "next_run": None if next_run is None else units.timestamp(next_run),
        "last_run": runs[0].as_dict() if runs else None,
    }


async def picture(service: Service, name: str) -> str:
    """Return phases, rate and steps of an operation over time, as SVG. Raises UnknownOperation."""
    number = await service.operations.resolve(name)
    of_it = await service.operations.get(number)
    steps, samples = await service.operations.steps(number), await service.operations.course(number)
    what = of_it.guest or of_it.job or of_it.image or ""
    outcome = of_it.state if of_it.error is None else f"{of_it.state}: {of_it.error['message']}"
    seen = [*(each.time for each in steps), *(each.time for each in samples)]
    begun = min([of_it.started or of_it.created, *seen])
    ended = of_it.ended or time.time()
    at = datetime.datetime.fromtimestamp(begun, datetime.UTC)
    lines = [
        f"{units.format_time(at)}, {units.format_duration(max(ended - begun, 0))}; {outcome}",
        *([] if samples else ["its progress was not recorded, only its steps were"]),
    ]
    marks = [(each.time, each.step) for each in steps]
    title = f"{of_it.kind} {what} ({of_it.id})".replace("  ", " ")
    return await blocking.call(
        lambda: course.drawn(course.Shown(title, lines, begun, ended, marks, samples))
    )
