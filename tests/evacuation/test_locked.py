"""A save-all that meets a guest that another mapsave is at, or has left paused."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.image import image as opening
from mapsave.monitor.process import identity
from mapsave.operations import attach, locks

from tests.kit import cli, emulated, qmp, wait

MIB = emulated.MIB


@contextlib.contextmanager
def job(site: cli.Site, *names: str) -> Iterator[subprocess.Popen[str]]:
    """Run a job that saves the guests and lets them run on; it is stopped amid its first save."""
    path = site.add_job("nightly", guests=list(names), save={"then": "resume"})
    with site.start("job", "run", path) as process:
        wait.until(lambda: list(site.images.glob("*.partial")), what="the job's save")
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None, "the job was over before it could be stopped"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)


def test_a_guest_that_a_job_is_saving_is_saved_behind_it(site: cli.Site) -> None:
    with (
        emulated.guest(site, "web", size=12 * MIB, throttle="2M") as socket,
        emulated.guest(site, "other"),
        job(site, "web") as process,
    ):
        planned = site.run("save-all", "--dry-run", "--json", check=0).json()
        assert emulated.outcomes(planned)["web"] == "planned"
        with site.start("save-all", "--deadline", "10m", "--json") as all_of_them:
            wait.until(lambda: "other" in emulated.committed(site), what="the other guest")
            process.send_signal(signal.SIGCONT)
            assert process.wait(wait.LONG) == 0
            done = cli.ended(all_of_them, check=0).json()
        assert not emulated.answers(socket)
    assert emulated.outcomes(done) == {"other": "saved", "web": "saved"}
    assert emulated.committed(site) == {"web", "other"}
    entry = next(each for each in emulated.recorded(site) if each["guest"] == "web")
    assert entry["ran"]
    assert len(list(site.images.glob("web*"))) == 2


def test_at_the_deadline_it_is_told_who_stands_in_the_way(site: cli.Site) -> None:
    with emulated.guest(site, "web", throttle="256K") as socket, job(site, "web") as process:
        done = site.run("save-all", "--deadline", "2s", "--json", check=8).json()
        assert done["guests"][0]["error"]["id"] == "guest.busy"
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert process.wait(wait.LONG) == 9
        assert emulated.status(socket) == "running"


def test_one_that_is_locked_by_its_process_is_waited_for(site: cli.Site) -> None:
    """It is being saved by another name, at another monitor."""
    with (
        emulated.guest(site, "web") as socket,
        emulated.guest(site, "other"),
        contextlib.ExitStack() as held,
    ):
        found = identity(emulated.pid(socket))
        assert found is not None
        held.enter_context(locks.held(site.state, "web", locks.process_key(*found)))
        with site.start("save-all", "--deadline", "10m", "--json") as process:
            wait.until(lambda: "other" in emulated.committed(site), what="the other guest")
            assert emulated.status(socket) == "running"
            held.close()
            done = cli.ended(process, check=0).json()
    assert emulated.outcomes(done) == {"other": "saved", "web": "saved"}
    assert emulated.committed(site) == {"web", "other"}


def save(site: cli.Site, then: str) -> str:
    return str(site.run("save", "web", "--then", then, "--json", check=0).json()["image"])


def migrate(socket: Path, target: Path) -> None:
    """Stop and migrate the guest as another tool would."""
    with qmp.connect(socket) as client:
        client.execute("stop")
        client.execute("migrate", uri=f"file:{target}")
        wait.until(
            lambda: client.execute("query-status")["status"] == "postmigrate", what="the migration"
        )


def failed(site: cli.Site) -> str:
    """Run save-all, which must fail for the guest's run state; return the hint."""
    done = site.run("save-all", "--json", check=3).json()
    (line,) = done["guests"]
    assert (line["outcome"], line["error"]["id"]) == ("failed", "check.run_state")
    assert line["image"] is None
    return str(line["error"]["hint"])


def test_an_older_image_behind_which_it_ran_on_is_not_where_it_lies(site: cli.Site) -> None:
    with emulated.guest(site, "web") as socket:
        save(site, "resume")
        left = save(site, "leave")
        assert site.run("save-all", "--json", check=0).json()["guests"][0]["image"] == left
        site.run("discard", left, "--yes", check=0)
        assert "older mapsave" in failed(site)
        assert emulated.status(socket) == "postmigrate"


@pytest.mark.parametrize("before", ["leave", "resume"])
def test_an_image_of_before_is_not_where_another_tool_left_it(
    site: cli.Site, tmp_path: Path, before: str
) -> None:
    with emulated.guest(site, "web") as socket:
        if before == "leave":
            save(site, "leave")
            with qmp.connect(socket) as client:
                client.execute("cont")
        save(site, "resume")
        migrate(socket, tmp_path / "elsewhere")
        failed(site)


def test_an_image_of_another_qemu_of_that_name_is_not_where_it_lies(
    site: cli.Site, tmp_path: Path
) -> None:
    with emulated.guest(site, "web"):
        save(site, "leave")
    with emulated.guest(site, "web") as socket:
        migrate(socket, tmp_path / "elsewhere")
        failed(site)


def test_a_paused_guest_is_left_by_a_resume_as_well(site: cli.Site) -> None:
    with emulated.guest(site, "web", paused=True) as socket:
        image = save(site, "resume")
        with opening.opened(image) as opened:
            known = opened.metadata
        pid = emulated.pid(socket)
        done = site.run("save-all", "--json", check=0).json()
    assert emulated.outcomes(done) == {"web": "skipped"}
    assert done["guests"][0]["image"] == image
    assert (known["then"], known["process"]["pid"]) == ("leave", pid)


def test_a_paused_guest_that_a_job_has_left_comes_back_paused(
    site: cli.Site, tmp_path: Path
) -> None:
    with emulated.guest(site, "web", paused=True, priority=3) as socket:
        before = emulated.ram_of(socket, tmp_path / "ram")
        path = site.add_job("nightly", guests=["web"], save={"then": "resume"})
        (line,) = site.run("job", "run", path, "--json", check=0).json()["guests"]
        for _ in range(2):  # the second finds it in the record
            done = site.run("save-all", "--json", check=0).json()
            assert emulated.outcomes(done) == {"web": "skipped"}
            (entry,) = emulated.recorded(site)
            assert (entry["guest"], entry["ran"], entry["priority"]) == ("web", False, 3)
            assert entry["image"] == line["result"]["image"]
        emulated.end(socket)  # the host goes down
        done = site.run("restore-all", "--json", check=0).json()
        assert emulated.outcomes(done) == {"web": "restored"}
        assert emulated.status(socket) == "prelaunch"  # which has not run since it was loaded
        assert emulated.ram_of(socket, tmp_path / "ram") == before
        assert emulated.recorded(site) == []


@pytest.mark.parametrize("then", ["quit", "resume"])
def test_one_that_ran_and_was_left_by_hand_stays_where_it_is(site: cli.Site, then: str) -> None:
    with emulated.guest(site, "web"):
        save(site, "leave")
        done = site.run("save-all", "--then", then, "--json", check=0).json()
        assert emulated.outcomes(done) == {"web": "skipped"}
        assert emulated.recorded(site) == []


def test_a_restore_waits_for_a_guest_that_another_mapsave_is_at(site: cli.Site) -> None:
    """As a job may be that has missed its run while the host was down."""
    sockets = {name: emulated.socket_of(site, name) for name in ("web", "other")}
    with emulated.guest(site, "web"), emulated.guest(site, "other"):
        site.run("save-all", check=0)
    key = attach.Monitor.at(str(sockets["web"])).key
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(locks.held(site.state, "web", key))
            with site.start("restore-all", "--parallel", "1", "--json") as process:
                wait.until(lambda: emulated.answers(sockets["other"]), what="the other guest")
                wait.until(lambda: emulated.committed(site) == {"web"}, what="its leaving")
                assert process.poll() is None
                held.close()
                done = cli.ended(process, check=0).json()
        assert emulated.outcomes(done) == {"web": "restored", "other": "restored"}
    finally:
        for socket in sockets.values():
            emulated.end(socket)
