"""A stop: amid a job the save that runs is finished, and what does not finish in time cancelled."""

import asyncio
import signal
from pathlib import Path
from typing import Any

from mapsave import sd_notify
from mapsave.service import server

from tests.faults import struck
from tests.kit import cli, emulated, service, wait
from tests.service.datagrams import receiver, told
from tests.service.impatient import hanging_until


def _write_job(site: cli.Site, **content: Any) -> None:
    site.write()
    site.add_job("nightly", **{"save": {"then": "resume"}, **content})


def _ended_job(site: cli.Site, number: str) -> dict[str, Any]:
    with service.running(site) as again:
        found: dict[str, Any] = again.get(f"/v1/operations/{number}")
        assert len(again.get(f"/v1/operations?parent={number}")["operations"]) == 1
        return found


def test_the_guests_that_had_not_their_turn_are_named(site: cli.Site) -> None:
    names = ["one", "two", "three"]
    with (
        emulated.guest(site, "one", throttle="2M"),
        emulated.guest(site, "two"),
        emulated.guest(site, "three"),
    ):
        _write_job(site, guests=names, concurrency=1)
        with service.running(site) as mapsaved:
            number = mapsaved.begin(kind="job", job="nightly")["id"]
            running = "/v1/operations?kind=save&state=running"
            wait.until(lambda: mapsaved.get(running)["operations"], what="the first save")
            assert mapsaved.stop() == 0
        job = _ended_job(site, number)
        assert job["state"] == "done"
        result = job["result"]
        assert (result["saved"], result["failed"]) == (1, 2)
        left_out = [line["error"]["id"] for line in result["guests"] if line["error"]]
        assert left_out == ["service.stopping"] * 2


def test_a_job_that_waits_to_try_again_does_not_hold_it_up(site: cli.Site) -> None:
    site.add_guest("gone", site.directory / "gone.qmp")
    _write_job(site, guests=["gone"], retries={"times": 3, "wait": "10m"})
    with service.running(site) as mapsaved:
        number = mapsaved.begin(kind="job", job="nightly")["id"]
        mapsaved.await_log("retrying in 10 m")
        assert mapsaved.stop() == 0
    job = _ended_job(site, number)
    assert (job["state"], job["error"]["id"]) == ("cancelled", "interrupted")


def test_a_job_that_is_cancelled_tells_who_was_saved_by_then(site: cli.Site) -> None:
    """Those guests have ended: not everything was rolled back."""
    with emulated.guest(site, "quick"), emulated.guest(site, "slow", throttle="64K") as slow:
        save = {"then": "quit", "image": "{guest}"}
        _write_job(site, guests=["quick", "slow"], concurrency=2, save=save)
        with service.running(site) as mapsaved:
            number = mapsaved.begin(kind="job", job="nightly")["id"]
            done = "/v1/operations?kind=save&state=done"
            wait.until(lambda: mapsaved.get(done)["operations"], what="the save of the quick guest")
            wait.until((site.images / "slow.partial").exists, what="the save of the slow guest")
            mapsaved.request("POST", f"/v1/operations/{number}/cancel")
            job = mapsaved.ended(number)
        assert (job["state"], job["error"]["id"]) == ("cancelled", "interrupted")
        assert job["error"]["data"]["saved"] == ["quick"]
        assert emulated.status(slow) == "running"


def test_what_is_not_finished_in_time_is_cancelled(site: cli.Site) -> None:
    site.settings["service"] = {"stop_timeout": "1s"}
    # It would take more than a minute.
    with emulated.guest(site, "db", size=64 << 20, throttle="1M") as guest:
        with service.running(site) as mapsaved:
            begun = mapsaved.begin(kind="save", guest="db")["id"]
            wait.until(lambda: struck.partials(site), what="the partial image")
            mapsaved.signal(signal.SIGTERM)
            ended = mapsaved.ended(begun)
            assert (ended["state"], ended["error"]["id"]) == ("cancelled", "interrupted")
            assert mapsaved.process.wait(wait.LONG) == 0
            assert "not finished within 1 s, cancelling" in mapsaved.logged()
        assert emulated.status(guest) == "running"
        assert not struck.journals(site)
        assert not list(site.images.iterdir())


def test_a_file_system_that_hangs_does_not_hold_up_the_stop(site: cli.Site) -> None:
    site.settings["service"] = {"stop_timeout": "1s"}
    answers = site.directory / "answers"
    with (
        emulated.guest(site, "db"),
        service.running(site, command=hanging_until(answers)) as mapsaved,
    ):
        mapsaved.done(kind="save", guest="db", save={"image": "one.mapsave", "then": "resume"})
        mapsaved.begin(kind="verify", image="one.mapsave")
        running = "/v1/operations?active=true&state=running"
        wait.until(lambda: mapsaved.get(running)["operations"], what="the verification")
        assert mapsaved.stop() == 0


async def test_systemd_is_asked_for_more_time_until_the_limit(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    with receiver(str(tmp_path / "notify")) as heard:
        notifier = sd_notify.Notifier(str(tmp_path / "notify"))
        async with asyncio.timeout(wait.LONG):
            await server._extend(notifier, stop, lambda: 0.2)
        assert told(heard) == ["EXTEND_TIMEOUT_USEC=20000000", "EXTEND_TIMEOUT_USEC=90000000"]
