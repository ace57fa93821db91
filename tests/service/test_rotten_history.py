"""A rotten ``journal.db`` keeps neither the service from starting nor a guest from recovery."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import struck
from tests.kit import cli, qemu, service
from tests.service import interrupted
from tests.service.interrupted import IMAGE, NAME


@pytest.fixture
def guest(site: cli.Site) -> Iterator[qemu.Qemu]:
    """A guest that a save has left paused, its image not committed."""
    with qemu.guest(site, NAME, memory="32M", paused=False) as found:
        struck.run(site, "after", "migrate", "KILL", "save", NAME, "--image", IMAGE)
        assert found.status() == "paused"
        yield found


def _rot(path: Path, how: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        if how == "newer":
            database.execute("PRAGMA user_version = 99")
        elif how == "tables":
            database.execute("DROP TABLE runs")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if how == "header":
        path.write_bytes(b"\xff" * 100 + path.read_bytes()[100:])
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "directory":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["header", "truncated", "newer", "tables", "directory"])
def test_a_rotten_history_is_renamed(site: cli.Site, guest: qemu.Qemu, how: str) -> None:
    path = site.state / "journal.db"
    with service.running(site) as before:
        interrupted.await_recovery(before)
        assert before.stop() == 0
    struck.run(site, "after", "migrate", "KILL", "save", NAME, "--image", IMAGE)
    assert guest.status() == "paused"
    _rot(path, how)
    with service.running(site) as mapsaved:
        interrupted.await_recovery(mapsaved)
        health = mapsaved.get("/v1/health")
        assert health["status"] == "degraded"
        assert guest.status() == "running"
        aside = min(site.state.glob("journal.db.damaged-*"), key=lambda each: len(each.name))
        assert f"'{aside}'" in health["problems"][-1]
        assert str(path) in mapsaved.logged()
        assert "the service is degraded" in site.run("ps", check=0).stderr
        metrics = service.request(site.socket, "GET", "/metrics").body.decode()
        assert "mapsave_degraded 1.0" in metrics
        mapsaved.done(kind="save", guest=NAME, save={"image": IMAGE, "then": "resume"})
        assert mapsaved.stop() == 0
    with service.running(site) as after:
        interrupted.await_recovery(after)
        assert after.get("/v1/health")["status"] == "ok"


def test_a_paused_guest_is_recovered_beside_a_rotten_history(
    site: cli.Site, guest: qemu.Qemu
) -> None:
    (site.state / "journal.db").write_bytes(b"rot" * 5000)
    with service.running(site) as mapsaved:
        guest.wait_status("running")
        interrupted.await_recovery(mapsaved)
        assert not struck.journals(site)


def test_a_history_that_another_program_holds_is_left_alone(
    site: cli.Site, guest: qemu.Qemu
) -> None:
    """The history is kept elsewhere until the service ends."""
    path = site.state / "journal.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE held (x)")
        database.execute("BEGIN EXCLUSIVE")
        with service.running(site) as mapsaved:
            guest.wait_status("running")
            interrupted.await_recovery(mapsaved)
            problems = mapsaved.get("/v1/health")["problems"]
            assert "only until the service exits" in problems[-1]
            mapsaved.done(kind="save", guest=NAME, save={"image": IMAGE, "then": "resume"})
            assert mapsaved.stop() == 0
    assert path.exists()
    assert not list(site.state.glob("journal.db.damaged*"))


def test_a_damaged_step_journal_makes_the_service_degraded(
    site: cli.Site, guest: qemu.Qemu
) -> None:
    (journal,) = struck.journals(site)
    journal.write_bytes(b"\xff\n" + journal.read_bytes())
    with service.running(site) as mapsaved:
        guest.wait_status("running")
        interrupted.await_recovery(mapsaved)
        health = mapsaved.get("/v1/health")
        assert health["status"] == "degraded"
        (problem,) = health["problems"]
        assert f"{journal.name}.damaged" in problem
