"""``mapsave job run`` with emulated guests: side by side, each on its own, the worst one counts."""

from __future__ import annotations

import hashlib
import resource
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.kit import cli, processes, qmp, state, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 16 << 20


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    """Where the emulated guests that a test starts itself listen."""
    directory = tmp_path / "qmp"
    directory.mkdir()
    return directory


@contextmanager
def emulated(site: cli.Site, sockets: Path, name: str, *options: str) -> Iterator[int]:
    """Run an emulated guest that the site knows by its socket; yield its process id."""
    socket = sockets / name
    words = ("--qmp", socket, "--memory", str(SIZE), "--pattern", "random", "--name", name)
    with cli.started("emulate", *words, *options) as process:
        site.add_guest(name, socket)
        qmp.connect(socket).close()
        yield process.pid


def write_job(site: cli.Site, **settings: Any) -> Path:
    job = site.directory / "job.yaml"
    job.write_text(yaml.safe_dump({"job": "nightly", "guests": ["*"], **settings}))
    return job


def memory_of(socket: Path, target: Path) -> tuple[str, str]:
    """Return a paused guest's name and the SHA-256 of its RAM, as its monitor writes it out."""
    with qmp.connect(socket) as monitor:
        name = monitor.execute("query-name")["name"]
        assert monitor.execute("query-status")["status"] != "running"
        monitor.execute("pmemsave", val=0, size=SIZE, filename=str(target))
    return name, hashlib.sha256(target.read_bytes()).hexdigest()


def end(socket: Path) -> None:
    with qmp.connect(socket) as monitor:
        pid = monitor.peer_pid()
        monitor.execute("quit")
    wait.until(lambda: pid not in processes.strays(), what="end of the emulated guest")


def test_saved_guests_come_back_with_their_ram(site: cli.Site, tmp_path: Path) -> None:
    # A writer changes their RAM while they run, so it is not what a new one is filled with.
    for name, pattern in (("toy1", "random"), ("toy2", "linux")):
        site.add_guest(name, emulator={"memory": "16M", "pattern": pattern, "writer": True})
    job = write_job(site, concurrency=2, save={"then": "leave", "image": "{guest}"})
    site.run("job", "run", job, check=0)
    before = set()
    for socket in site.state.glob("emulated/*.qmp"):
        before.add(memory_of(socket, tmp_path / "ram"))
        end(socket)
    assert {name for name, _ in before} == {"toy1", "toy2"}

    after = set()
    for name in ("toy1", "toy2"):
        done = site.run("restore", name, "--paused", "--json", check=0).json()
        socket = Path(done["monitor"].removeprefix("qmp:"))
        after.add(memory_of(socket, tmp_path / "ram"))
        end(socket)
    assert after == before


def test_guests_are_saved_side_by_side_up_to_concurrency(site: cli.Site, sockets: Path) -> None:
    names = ["a", "b", "c", "d"]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(emulated(site, sockets, name, "--throttle", "24M"))
        job = write_job(site, concurrency=2, save={"image": "{guest}"})
        most = 0
        with site.start("job", "run", job, "--json") as process:
            while process.poll() is None:
                most = max(most, len(list(site.images.glob("*.partial"))))
                time.sleep(0.005)
            assert process.returncode == 0
    assert most == 2
    assert sorted(path.name for path in site.images.iterdir()) == names


def test_failures_stop_nobody_and_the_worst_counts(
    site: cli.Site, sockets: Path, tmp_path: Path
) -> None:
    with (
        emulated(site, sockets, "full") as pid,
        emulated(site, sockets, "good"),
        emulated(site, sockets, "well"),
    ):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        site.add_guest("gone", tmp_path / "nobody.qmp")
        job = write_job(site, guests=["gone", "full", "*"], save={"image": "{guest}"})
        result = site.run("job", "run", job, "--json", check=4)
        done = result.json()
        with qmp.connect(sockets / "full") as monitor:
            assert monitor.execute("query-status")["status"] == "running"
    assert (done["job"], done["saved"], done["failed"], done["exit_code"]) == ("nightly", 2, 2, 4)
    outcome = {line["guest"]: line["error"] and line["error"]["id"] for line in done["guests"]}
    assert list(outcome) == ["gone", "full", "good", "well"]
    assert list(outcome.values()) == ["check.unreachable", "save.failed", None, None]
    assert sorted(path.name for path in site.images.iterdir()) == ["good", "well"]
    for name in ("good", "well"):
        assert site.run("verify", name, "--json", check=0).json()["valid"] is True


def test_summary_lists_each_guest(site: cli.Site, sockets: Path, tmp_path: Path) -> None:
    with emulated(site, sockets, "good"):
        site.add_guest("gone", tmp_path / "nobody.qmp")
        job = write_job(site, save={"image": "{guest}-{job}"})
        shown = site.run("job", "run", job, check=3).stdout.splitlines()
    assert shown[0].split() == ["guest", "outcome", "time", "image"]
    assert shown[1].split()[:2] == ["good", "saved"]
    assert str(site.images / "good-nightly") in shown[1]
    assert shown[2].split()[:2] == ["gone", "FAILED"]
    assert "[check.unreachable]" in shown[2]
    assert shown[-1] == "job nightly: 1 saved, 1 failed"


def test_job_check_touches_nothing(site: cli.Site, sockets: Path, tmp_path: Path) -> None:
    with emulated(site, sockets, "good"):
        site.add_guest("gone", tmp_path / "nobody.qmp")
        job = write_job(site)
        with qmp.connect(sockets / "good") as monitor:
            before = state.of(monitor)
        done = site.run("job", "check", job, "--json", check=3).json()
        with qmp.connect(sockets / "good") as monitor:
            assert state.of(monitor) == before
            assert "status" not in monitor.execute("query-migrate")
    assert list(site.images.iterdir()) == []
    assert (done["failed"], done["exit_code"]) == (1, 3)
    lines = {line["guest"]: line for line in done["guests"]}
    assert lines["good"]["result"]["can_save"] is True
    assert lines["gone"]["error"]["id"] == "check.unreachable"


def test_timeout_of_a_job_leaves_the_guest_running(site: cli.Site, sockets: Path) -> None:
    with emulated(site, sockets, "slow", "--throttle", "1M"):
        job = write_job(site, timeout="1s")
        done = site.run("job", "run", job, "--json", check=4).json()
        assert done["guests"][0]["error"]["id"] == "save.timeout"
        with qmp.connect(sockets / "slow") as monitor:
            assert monitor.execute("query-status")["status"] == "running"
            assert monitor.execute("query-fdsets") == []
    assert list(site.images.iterdir()) == []
