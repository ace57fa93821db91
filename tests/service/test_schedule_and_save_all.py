"""The schedule does not begin a job while all guests are saved before the host goes down."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mapsave import config as configuration
from mapsave.history import history
from mapsave.service import work as work_
from mapsave.service.operation import Operation
from mapsave.service.service import Service

from tests.kit import cli, emulated, service, wait


def _write_job(site: cli.Site) -> Path:
    jobs = site.directory / "jobs.d"
    jobs.mkdir()
    site.settings["jobs"] = str(jobs)
    job = jobs / "nightly.yaml"
    content = {"job": "nightly", "guests": ["web"], "save": {"then": "resume"}}
    job.write_text(yaml.safe_dump({**content, "schedule": "30 2 * * *"}))
    return job


async def _has_missed_a_run(site: cli.Site) -> float:
    """Have the journal say that the job ran two days ago; return when."""
    when = time.time() - 2 * 86400
    async with history.opened(site.state / "journal.db") as kept:
        await kept.ran("nightly", when)
    return when


async def _last_run(site: cli.Site) -> float | None:
    async with history.opened(site.state / "journal.db") as kept:
        return await kept.last_run("nightly")


def _save_all_with_a_job_due(site: cli.Site, job: Path) -> None:
    """Begin to save all, and while that goes on have the job come, which has missed a run."""
    hidden = job.rename(job.with_suffix(".hidden"))
    with service.running(site) as mapsaved:
        saving = mapsaved.begin(kind="save-all", then="resume")["id"]
        hidden.rename(job)
        assert mapsaved.request("POST", "/v1/reload").status == 200
        mapsaved.await_log("job nightly: all guests are being saved; skipping this run")
        assert mapsaved.ended(saving)["state"] == "done"
        assert not mapsaved.get("/v1/operations?kind=job")["operations"]
        assert mapsaved.stop() == 0


async def test_a_run_that_is_due_while_all_is_saved_counts_as_missed(site: cli.Site) -> None:
    job = _write_job(site)
    with emulated.guest(site, "db", size=12 << 20, throttle="1M"), emulated.guest(site, "web"):
        site.write()
        when = await _has_missed_a_run(site)
        _save_all_with_a_job_due(site, job)
        assert await _last_run(site) == when
        with service.running(site) as again:
            wait.until(
                lambda: again.get("/v1/operations?kind=job&state=done")["operations"],
                what="the run that was missed",
            )


@pytest.mark.parametrize("dry_run", [True, False])
async def test_only_what_really_saves_keeps_jobs_from_running(
    site: cli.Site, dry_run: bool
) -> None:
    _write_job(site)
    site.add_guest("web", site.directory / "nobody-listens")
    site.write()
    config = configuration.load(site.config, {})
    over = asyncio.Event()

    async def work(_: Operation) -> dict[str, Any]:
        await over.wait()
        return {}

    async with history.opened(site.state / "journal.db") as kept:
        ours = Service(
            lambda: config,
            config,
            kept,
            notifying={"job": False, "save-all": False},
            start_job=work_.start_job,
        )
        job = ours.jobs.get("nightly")
        request = {"dry_run": True} if dry_run else {}
        await ours.operations.begin(Operation("save-all", "root", request), work)
        left_out = await work_.start_job(ours, job)
        assert (left_out is None) == dry_run
        running = [each.job for each in ours.operations.under_way() if each.kind == "job"]
        assert (running == ["nightly"]) == dry_run
        over.set()
        await ours.operations.stop(finish=True)
