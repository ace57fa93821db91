"""``save-all`` and ``restore-all`` through the service, and the schedule in the meantime."""

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave.history import history
from mapsave.service import work as work_
from mapsave.service.operation import Operation
from mapsave.service.service import Service

from tests.kit import cli, emulated, service, wait

GUESTS = ("small", "large")


def test_all_guests_are_saved_and_come_back_by_the_service(site: cli.Site) -> None:
    for name, memory in zip(GUESTS, ("8M", "16M"), strict=True):
        site.add_guest(name, emulator={"memory": memory})
    with service.running(site) as mapsaved:
        for name in GUESTS:  # starts them
            mapsaved.done(kind="save", guest=name, save={"then": "resume"})
        saved = site.run("save-all", "--deadline", "2m", "--json", check=0).json()
        assert [line["guest"] for line in saved["guests"]] == ["small", "large"]
        assert saved["saved"] == 2
        assert "save-all" in site.run("ps", "--all", check=0).stdout

        back = site.run("restore-all", "--json", check=0).json()
        assert back["restored"] == 2
        for name in GUESTS:
            of_it = mapsaved.get(f"/v1/operations?guest={name}")["operations"]
            assert [each["kind"] for each in of_it] == ["restore", "save", "save"]
            parents = [each["parent"] for each in of_it[:2]]
            kinds = [mapsaved.get(f"/v1/operations/{each}")["kind"] for each in parents]
            assert kinds == ["restore-all", "save-all"]


@pytest.mark.parametrize(("patience", "comes_back"), [(wait.LONG, True), (1.0, False)])
def test_a_service_that_dies_over_a_restore_all(
    site: cli.Site, tmp_path: Path, patience: float, comes_back: bool
) -> None:
    """What it was at is recovered, and all guests come back, without being asked again."""
    gate, is_at_it = tmp_path / "gate", tmp_path / "is-at-it"
    for name in GUESTS:
        site.add_guest(name, emulator={"memory": "8M"})
    waits = f"touch {is_at_it}; until [ -e {gate} ]; do sleep 0.05; done"
    site.add_hook("wait", waits, "before_restore")
    with service.running(site) as mapsaved:
        for name in GUESTS:  # starts them
            mapsaved.done(kind="save", guest=name, save={"then": "resume"})
        site.run("save-all", check=0)
        with site.start("restore-all", "--json", command=_waiting(patience)) as process:
            wait.until(is_at_it.exists, what="the first restore")
            mapsaved.kill()
            gate.touch()
            with service.running(site) if comes_back else contextlib.nullcontext():
                done = cli.ended(process, check=0)
    assert "exited" in done.stderr
    assert ("without it" in done.stderr) is not comes_back
    assert set(emulated.outcomes(done.json()).values()) == {"restored"}
    assert emulated.recorded(site) == []


def test_interrupted_save_all_tells_who_is_in_an_image(site: cli.Site) -> None:
    """One after the other: the second is under way, and put back, when the command is told."""
    site.add_guest("first", emulator={"memory": "8M"}, priority=1)
    site.add_guest("second", emulator={"memory": "8M"})
    site.add_hook("wait", "", "before_save")
    with service.running(site) as mapsaved:
        for name in ("first", "second"):  # starts them
            mapsaved.done(kind="save", guest=name, save={"then": "resume"})
        site.add_hook("wait", '[ "$MAPSAVE_GUEST" = first ] || sleep 60', "before_save")
        with site.start("save-all", "--parallel", "1", "--json") as process:
            wait.until(
                lambda: mapsaved.get("/v1/operations?guest=second&kind=save&state=running")[
                    "operations"
                ],
                what="save of the second",
            )
            process.send_signal(signal.SIGINT)
            assert cli.ended(process, check=9).error()["data"]["saved"] == ["first"]
        assert site.run("restore-all", "--json", check=0).json()["restored"] == 1


def _waiting(patience: float) -> list[str]:
    """Return what runs a mapsave that waits for ``patience`` seconds for a service to come back."""
    code = (
        "import dataclasses; from mapsave.client import delegate;"
        f"delegate.USUAL = dataclasses.replace(delegate.USUAL, reconnect={patience});"
        "from mapsave.cli import start; start.command()"
    )
    return [sys.executable, "-c", code]


def _write_job(site: cli.Site) -> Path:
    save = {"then": "resume"}
    return site.add_job("nightly", guests=["web"], save=save, schedule="30 2 * * *")


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


async def test_a_missed_run_begins_after_the_guests_are_back(site: cli.Site) -> None:
    """The host was down since the run before; save-all was the last thing that it did."""
    site.add_guest("web", emulator={"memory": "4M"}, policy="none")
    schedule = {"cron": "0 0 1 1 *"}
    site.add_job("yearly", guests=["web"], schedule=schedule, save={"then": "resume"})
    with service.emulated_ended(site):
        site.run("save", "web", "--then", "resume", check=0)  # starts it
        site.run("save-all", check=0)
    async with history.opened(site.state / "journal.db") as kept:
        await kept.ran("yearly", time.time() - 2 * 366 * 86400)
    with service.running(site) as mapsaved:
        mapsaved.await_log("waiting: job yearly: 'mapsave restore-all' has not restored")
        assert mapsaved.get("/v1/operations?job=yearly")["operations"] == []
        done = site.run("restore-all", "--json", check=0).json()
        assert emulated.outcomes(done) == {"web": "restored"}

        def runs() -> Any:
            found = mapsaved.get("/v1/operations?job=yearly")["operations"]
            return [each["id"] for each in found if each["kind"] == "job"]

        (run,) = await asyncio.to_thread(wait.until, runs, what="the run")
        assert mapsaved.ended(run)["result"]["saved"] == 1
