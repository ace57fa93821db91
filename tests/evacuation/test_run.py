"""A save-all whose saver is not the usual one, as the service's: what it may do, and what then."""

import asyncio
from collections.abc import Callable

import pytest
from mapsave import config, errors
from mapsave.config import Config, Guest
from mapsave.evacuation import save_all, save_run
from mapsave.hooks import around
from mapsave.migration.progress import Progress, Report
from mapsave.operations.results import SaveResult
from mapsave.operations.save_request import Request

from tests.kit import cli, emulated, wait


def load(site: cli.Site) -> Config:
    return config.load(site.config, {})


@pytest.fixture
async def pass_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """What makes seconds pass by at once for the event loop, however slow the machine is."""
    loop = asyncio.get_running_loop()
    clock, passed = loop.time, 0.0

    def later(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(loop, "time", lambda: clock() + passed)
    return later


async def test_what_is_being_committed_at_the_deadline_is_finished(
    site: cli.Site, pass_by: Callable[[float], None]
) -> None:
    with emulated.guest(site, "web"), emulated.guest(site, "late", size=16 * emulated.MIB) as late:
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            report(Progress("commit"))
            pass_by(70.0)
            return await around.save(guest, found, request, report)

        asked = save_run.Request(deadline=60.0, parallel=1)
        done = await save_all.save_all(found, asked, saver=saver)
        assert emulated.status(late) == "running"
    assert emulated.outcomes(done) == {"web": "saved", "late": "no_time"}
    assert emulated.committed(site) == {"web"}


async def test_what_hangs_before_that_is_given_up(
    site: cli.Site, pass_by: Callable[[float], None]
) -> None:
    with emulated.guest(site, "web") as socket:
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            report(Progress("sync"))
            pass_by(70.0)
            await asyncio.sleep(600)
            raise AssertionError("the deadline was before this")

        done = await save_all.save_all(found, save_run.Request(deadline=60.0), saver=saver)
        assert emulated.status(socket) == "running"
    assert done["guests"][0]["error"]["id"] == "save.timeout"
    assert emulated.recorded(site) == []


async def test_a_bug_costs_one_guest_its_save(site: cli.Site) -> None:
    with emulated.guest(site, "bug", priority=1), emulated.guest(site, "web"):
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            if guest.name == "bug":
                raise ZeroDivisionError("by zero")
            return await around.save(guest, found, request, report)

        done = await save_all.save_all(found, save_run.Request(), saver=saver)
    assert emulated.outcomes(done) == {"bug": "failed", "web": "saved"}
    assert done["guests"][0]["error"]["message"] == "unexpected ZeroDivisionError: by zero"
    assert done["exit_code"] == 1


async def test_a_guest_that_another_comes_to_first_is_saved_behind_it(site: cli.Site) -> None:
    """Between the look at it and its save; it is looked at again, and gets its own image."""
    came: list[str] = []
    with emulated.guest(site, "web"), emulated.guest(site, "other"):
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            came.append(guest.name)
            if came.count("web") == 1 and guest.name == "web":
                raise errors.Busy("guest 'web' is being saved by another mapsave process")
            return await around.save(guest, found, request, report)

        done = await save_all.save_all(found, save_run.Request(deadline=600.0), saver=saver)
    assert emulated.outcomes(done) == {"other": "saved", "web": "saved"}
    assert sorted(came) == ["other", "web", "web"]
    assert emulated.committed(site) == {"web", "other"}
    assert len(list(site.images.iterdir())) == 2


async def test_a_guest_that_others_always_come_to_first_is_given_up(site: cli.Site) -> None:
    with emulated.guest(site, "web") as socket:
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            raise errors.Busy("guest 'web' is being saved by another mapsave process")

        done = await save_all.save_all(found, save_run.Request(), saver=saver)
        assert emulated.status(socket) == "running"
    assert (done["exit_code"], emulated.recorded(site)) == (8, [])


async def test_a_guest_that_ends_while_it_waits_is_no_failure(site: cli.Site) -> None:
    with emulated.guest(site, "first", priority=1), emulated.guest(site, "second") as second:
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            if guest.name == "first":
                await asyncio.to_thread(emulated.end, second)
            return await around.save(guest, found, request, report)

        done = await save_all.save_all(found, save_run.Request(parallel=1), saver=saver)
    assert emulated.outcomes(done) == {"first": "saved", "second": "not_running"}
    assert done["exit_code"] == 0
    assert emulated.committed(site) == {"first"}


async def test_an_image_of_a_guest_that_somebody_continued_is_not_brought_back(
    site: cli.Site,
) -> None:
    with emulated.guest(site, "web"):
        found = load(site)

        async def saver(guest: Guest, request: Request, report: Report) -> SaveResult:
            await around.save(guest, found, request, report)
            raise errors.GuestContinued("another client resumed the guest")

        done = await save_all.save_all(found, save_run.Request(), saver=saver)
    assert done["exit_code"] == 4
    assert len(list(site.images.iterdir())) == 1
    assert emulated.recorded(site) == []


async def test_reports_sum_all_guests_up(site: cli.Site) -> None:
    seen: list[Progress] = []
    with emulated.guest(site, "one"), emulated.guest(site, "two"):
        done = await save_all.save_all(load(site), save_run.Request(), seen.append)
    assert done["saved"] == 2
    assert {each.total_bytes for each in seen} == {16 * emulated.MIB}
    assert [each.done_bytes for each in seen] == sorted(each.done_bytes for each in seen)
    assert seen[-1].done_bytes == 16 * emulated.MIB
    assert {each.phase for each in seen} <= {f"{number} of 2 guests" for number in range(3)}


async def test_cancelled_it_puts_back_and_says_so(site: cli.Site) -> None:
    with emulated.guest(site, "web", throttle="64K") as socket:
        running = asyncio.create_task(save_all.save_all(load(site), save_run.Request()))
        await asyncio.to_thread(
            wait.until, lambda: list(site.images.glob("*.partial")), what="the save"
        )
        assert emulated.recorded(site)[0]["time"] is None
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert emulated.status(socket) == "running"
    assert emulated.recorded(site) == []
    assert list(site.images.iterdir()) == []
