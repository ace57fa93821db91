"""``--progress json`` for jobs, for those who wait for them, and where Ctrl-C rolls back."""

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit import cli, emulated, service, wait

RESUME = ("--then", "resume")
KEYS = {"phase", "done_bytes", "total_bytes", "bytes_per_s", "eta_s"}


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with guests of which two take some three seconds."""
    site = cli.Site(tmp_path_factory.mktemp("progress") / "site")
    site.add_job("nightly", guests=["db", "one", "two"], save={"then": "resume"}, concurrency=2)
    with (
        emulated.guest(site, "db"),
        emulated.guest(site, "one", throttle="3M"),
        emulated.guest(site, "two", throttle="3M"),
        emulated.guest(site, "slow", throttle="32K"),
        service.running(site) as running,
    ):
        yield running


def shown(stderr: str) -> list[dict[str, Any]]:
    """Return the objects that were printed, which are as the API has them."""
    found = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert all(each.keys() == KEYS for each in found)
    return found


@pytest.mark.parametrize("where", [(), ("--local",)], ids=["service", "here"])
def test_a_job_shows_how_far_all_its_guests_are(
    mapsaved: service.Service, where: tuple[str, ...]
) -> None:
    words = ("job", "run", "nightly", "--progress", "json", *where)
    reports = shown(mapsaved.site.run(*words, check=0).stderr)
    figures = [each for each in reports if each["total_bytes"]]
    assert {each["phase"] for each in reports} <= {f"{n} of 3 guests" for n in range(4)}
    assert all(each["done_bytes"] <= each["total_bytes"] for each in figures)
    # The total is estimated from those that have begun; all are as large.
    assert len({each["total_bytes"] for each in figures}) == 1
    assert any(each["eta_s"] for each in figures)


def test_who_waits_for_a_job_sees_the_same(mapsaved: service.Service) -> None:
    site = mapsaved.site
    number = site.run("job", "run", "nightly", "--no-wait", check=0).stdout.strip()
    reports = shown(site.run("wait", number, "--progress", "json", check=0).stderr)
    assert any(0 < each["done_bytes"] <= each["total_bytes"] for each in reports)
    assert all(each["phase"].endswith(" of 3 guests") for each in reports)


@pytest.mark.parametrize("form", ["json", "auto"])
def test_ctrl_c_says_that_the_guest_is_resumed(mapsaved: service.Service, form: str) -> None:
    site = mapsaved.site
    with site.start("save", "slow", *RESUME, "--local", "--progress", form) as process:
        wait.until(lambda: _is_paused(site), what="a save that has paused the guest")
        process.send_signal(signal.SIGINT)
        stderr = cli.ended(process, check=9).stderr
    if form == "json":
        assert [each["phase"] for each in shown(stderr)][-1] == "resume"
    else:
        assert stderr.splitlines()[0] == "mapsave: saving slow: resuming the guest …"
    assert emulated.status(emulated.socket_of(site, "slow")) == "running"


def _is_paused(site: cli.Site) -> bool:
    # A monitor serves one client, which the save is; its journal says what it has done.
    steps = [path.read_text() for path in (site.state / "journal").glob("*")]
    return any('"migrate"' in each for each in steps)


def test_a_reader_that_is_gone_stops_nothing(mapsaved: service.Service) -> None:
    words = ("save", "db", *RESUME, "--progress", "json", "--json")
    with mapsaved.site.start(*words) as process:
        assert isinstance(process, subprocess.Popen) and process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["guest"] == "db"
        assert process.wait(wait.LONG) == 0
