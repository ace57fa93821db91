"""Scrub jobs of the service: on their schedule, gone on with after a crash, and reported."""

import asyncio
import os
import time
from pathlib import Path

from mapsave.history import history
from mapsave.image import image
from mapsave.operations import verified_notes

from tests.kit import cli, files, service, wait


def turn(path: Path) -> None:
    with image.opened(path) as opened:
        at = opened.validate().stream.blocks[0].pages_offset + 5000
    with files.opened(path, os.O_RDWR) as fd:
        (was,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([was ^ 1]), at)


def position(site: cli.Site, path: Path) -> int:
    with image.opened(path) as opened:
        note = verified_notes.read(site.state, verified_notes.key_of(opened))
    return note.under_way.position if note is not None and note.under_way is not None else 0


def last_ran_long_ago(site: cli.Site) -> None:
    """Have the history say so: the run that was missed since is due at the start."""

    async def ran() -> None:
        async with history.opened(site.state / "journal.db") as kept:
            await kept.ran("weekly", time.time() - 2 * 366 * 86400)

    asyncio.run(ran())


def test_a_run_of_the_schedule_that_was_killed_is_gone_on_with(site: cli.Site) -> None:
    site.add_guest("db", emulator={"memory": "16M", "pattern": "random"})
    with service.emulated_ended(site):
        for name in ("a", "b"):
            save = ("save", "db", "-o", name, "--digests", "before", "--then", "resume")
            site.run(*save, check=0)
    turn(site.images / "a")  # in what is read before the crash
    site.add_job("weekly", kind="scrub", rate="2M", schedule="0 0 1 1 *")
    last_ran_long_ago(site)
    with service.running(site) as mapsaved:
        wait.until(lambda: position(site, site.images / "a"), what="a note of how far it is")
        mapsaved.kill()
    begun = position(site, site.images / "a")
    last_ran_long_ago(site)
    site.add_job("weekly", kind="scrub", rate="100M", schedule="0 0 1 1 *")
    with service.running(site) as mapsaved:

        def ended() -> list[str]:
            found = mapsaved.get("/v1/operations?kind=job")["operations"]
            return [each["id"] for each in found if each["ended"] is not None]

        wait.until(lambda: len(ended()) == 2, what="the end of both runs")
        run, killed = (mapsaved.get(f"/v1/operations/{each}") for each in ended())
        assert killed["state"] != "done"
        assert run["state"] == "failed"
        assert run["error"] is None
        done = run["result"]
        assert (done["exit_code"], done["verified"], done["damaged"]) == (6, 1, 1)
        lines = {Path(each["image"]).name: each for each in done["images"]}
        assert lines["a"]["resumed_at"] == begun
        assert lines["a"]["outcome"] == "damaged"
        assert lines["a"]["read_bytes"] < lines["a"]["verified_bytes"]
        mapsaved.await_log("job failed: 1 verified, 1 DAMAGED")
        metrics = mapsaved.request("GET", "/metrics").body.decode()
        assert 'mapsave_image_scrub_looks_total{outcome="damaged"} 1.0' in metrics
        assert 'mapsave_failures_total{error="image.data_damaged",kind="job"} 1.0' in metrics
        assert 'mapsave_job_last_run_success{job="weekly"} 0.0' in metrics
        wait.until(
            lambda: (
                b'mapsave_image_scrub_images{outcome="damaged"} 1.0'
                in mapsaved.request("GET", "/metrics").body
            ),
            what="the images that are damaged",
        )
        (job,) = mapsaved.get("/v1/jobs")["jobs"]
        assert (job["kind"], job["guests"], job["rate_bytes_per_s"]) == ("scrub", [], 100 << 20)
        shown = {each["name"]: each["verified"] for each in mapsaved.get("/v1/images")["images"]}
        assert shown["a"]["outcome"] == "damaged"
        assert shown["b"]["outcome"] == "verified"
        listed = site.run("job", "list", check=0).stdout
        assert "- (scrub)" in listed
        assert "1 verified, 1 DAMAGED" in listed
        assert "DAMAGED" in site.run("job", "run", "weekly", check=6).stdout
        assert "1 images are due, 1 are not" in site.run("job", "check", "weekly", check=0).stdout


def test_a_run_that_is_cancelled_goes_on_where_it_was(site: cli.Site) -> None:
    site.add_guest("db", emulator={"memory": "16M", "pattern": "random"})
    with service.emulated_ended(site):
        save = ("save", "db", "-o", "a", "--digests", "before", "--then", "resume")
        site.run(*save, check=0)
    site.add_job("weekly", kind="scrub", rate="2M")
    site.add_job("quick", kind="scrub")
    with service.running(site) as mapsaved:
        number = mapsaved.begin(kind="job", job="weekly")["id"]
        wait.until(
            lambda: (
                (mapsaved.get(f"/v1/operations/{number}")["progress"] or {}).get("done_bytes", 0)
                > (6 << 20)
            ),
            what="some progress",
        )
        assert mapsaved.request("POST", f"/v1/operations/{number}/cancel").status < 300
        assert mapsaved.ended(number)["state"] == "cancelled"
        begun = position(site, site.images / "a")
        assert begun > 1 << 20
        (line,) = mapsaved.done(kind="job", job="quick")["images"]
        assert (line["resumed_at"], line["outcome"]) == (begun, "verified")
