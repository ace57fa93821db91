"""No room for the journal: clear errors, and a service that stays up and catches up."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, emulated, qemu, service, storage, wait
from tests.kit.outcomes import PUT_BACK
from tests.service import interrupted

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def place(site: cli.Site) -> Iterator[Path]:
    """A small file system that holds the state of the site."""
    with storage.tmpfs(4 * MIB, site.directory) as found:
        site.settings["state"] = str(found)
        site.write()
        yield found


def test_nothing_is_begun_without_room_and_all_goes_on_with_it(site: cli.Site, place: Path) -> None:
    with emulated.guest(site, "db") as guest, service.running(site) as mapsaved:
        mapsaved.await_recovery()
        with storage.filled(place, leave=0):
            for _ in range(3):  # what SQLite had reserved is used up
                answer = mapsaved.request("POST", "/v1/operations", {"kind": "save", "guest": "db"})
                if answer.status != 202:
                    break
                assert mapsaved.ended(answer.json()["id"])["state"] == "failed"
            assert (answer.status, answer.error) == (409, "check.refused")
            assert "journal" in answer.json()["error"]["message"]
            refused = site.run("save", "db", "--json", check=3).error()
            assert "free some space" in refused["hint"]
            assert mapsaved.get("/v1/health")["status"] == "ok"
            assert emulated.status(guest) == "running"
        mapsaved.done(kind="save", guest="db", save={"then": "resume"})


def test_an_end_that_cannot_be_written_is_told_and_written_later(
    site: cli.Site, place: Path
) -> None:
    with emulated.guest(site, "db", throttle="2M") as guest, service.running(site) as mapsaved:
        pid = emulated.pid(guest)
        with site.start("save", "db", "--then", "resume", "--json") as waiting:
            (begun,) = wait.until(
                lambda: mapsaved.get("/v1/operations?state=running")["operations"], what="the save"
            )
            os.kill(pid, signal.SIGSTOP)  # else it might end before the disk is full
            with storage.filled(place, leave=0):
                os.kill(pid, signal.SIGCONT)
                ended = mapsaved.ended(begun["id"])
                mapsaved.await_log("its result could not be recorded yet")
                stdout, stderr = waiting.communicate(timeout=wait.LONG)
                if ended["state"] == "done":
                    assert json.loads(stdout)["image"] == ended["image"], stderr
                else:
                    assert json.loads(stdout)["error"] == ended["error"]
                path = f"/v1/operations?state={ended['state']}"
                assert [each["id"] for each in mapsaved.get(path)["operations"]] == [begun["id"]]
                assert not mapsaved.get("/v1/operations?state=running")["operations"]
        assert mapsaved.stop() == 0
    with service.running(site) as again:
        found = again.get(f"/v1/operations/{begun['id']}")
        assert (found["state"], found["result"]) == (ended["state"], ended["result"])
        assert found["error"] == ended["error"]
        assert found["image"] == ended["image"]
        assert "recovered" not in (found["result"] or {})


def test_a_start_without_room_says_so(site: cli.Site, place: Path) -> None:
    """Guests are looked after all the same; only what was done is not kept."""
    with storage.filled(place, leave=0), service.running(site) as mapsaved:
        health = mapsaved.get("/v1/health")
        assert health["status"] == "degraded"
        assert "journal" in str(health["problems"])
    with service.running(site) as mapsaved:
        assert mapsaved.get("/v1/health")["status"] in ("starting", "ok", "degraded")


def test_what_was_recovered_without_room_is_told_later(site: cli.Site, place: Path) -> None:
    """The guest is resumed all the same; until there is room the operation counts as running."""
    with qemu.guest(site, interrupted.NAME, paused=False) as guest:
        arguments = ("save", interrupted.NAME, "--image", interrupted.IMAGE)
        with interrupted.until_killed(site, "after", "pause", *arguments) as waiting:
            guest.kill(signal.SIGSTOP)
            with service.running(site) as mapsaved:
                try:
                    mapsaved.await_log("retrying in")
                    with storage.filled(place, leave=0):
                        _use_up(mapsaved)
                        guest.kill(signal.SIGCONT)
                        mapsaved.await_log("its result could not be recorded yet")
                        assert guest.status() == "running"
                        assert mapsaved.get("/v1/health")["recovered"] is False
                finally:
                    guest.kill(signal.SIGCONT)
                code, told = interrupted.outcome(waiting)
                assert (code, told["error"]["id"]) == (9, "interrupted")
                found = interrupted.the_only(mapsaved, kind="save", state="cancelled")
                interrupted.assert_undone(found, PUT_BACK)
                interrupted.await_recovery(mapsaved)


def _use_up(mapsaved: service.Service) -> None:
    """Begin operations until the journal takes no more: what SQLite has reserved is used up."""
    for _ in range(50):
        body = {"kind": "check", "guest": "qmp:/nowhere"}
        if mapsaved.request("POST", "/v1/operations", body).status == 409:
            return
    raise AssertionError("the journal still takes operations")
