"""A stop has an end: what does not finish in time is cancelled, and no more time is asked for."""

import asyncio
import signal
from pathlib import Path

from mapsave.service import server, systemd

from tests.faults import struck
from tests.kit import cli, emulated, service, wait
from tests.service.datagrams import receiver, told
from tests.service.impatient import hanging_until


def test_what_is_not_finished_in_time_is_cancelled(site: cli.Site) -> None:
    site.settings["service"] = {"stop_timeout": "1s"}
    # It would take more than a minute.
    with emulated.guest(site, "db", size=64 << 20, throttle="1M") as guest:
        with service.running(site) as mapsaved:
            begun = mapsaved.begin(kind="save", guest="db")["id"]
            wait.until(lambda: struck.partials(site), what="the partial image")
            mapsaved.signal(signal.SIGTERM)
            ended = mapsaved.ended(begun, timeout=40)
            assert (ended["state"], ended["error"]["id"]) == ("cancelled", "interrupted")
            assert mapsaved.process.wait(40) == 0
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
        assert mapsaved.stop(40) == 0


async def test_systemd_is_asked_for_more_time_until_the_limit(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    with receiver(str(tmp_path / "notify")) as heard:
        notifier = systemd.Notifier(str(tmp_path / "notify"))
        async with asyncio.timeout(30):
            await server._extend(notifier, stop, lambda: 0.2)
        assert told(heard) == ["EXTEND_TIMEOUT_USEC=20000000", "EXTEND_TIMEOUT_USEC=90000000"]
