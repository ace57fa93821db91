"""Schedulers as processes: one leads, another one takes over, a broken file changes nothing."""

import asyncio
import os
import signal
from pathlib import Path

from mapsave.fleet.database import Connection

from tests.fleet import schedulers
from tests.fleet.scheduling import HOSTS, agents
from tests.kit import fleet as kit
from tests.kit import wait
from tests.kit.fleet import Fleet
from tests.service.datagrams import receiver, told

JOBS = HOSTS + (
    "jobs: {web: {guests: ['web*'], schedule: {cron: '0 0 1 1 *', time_zone: UTC}}}\n"
    "metrics: {textfile: fleet.prom}\n"
)


async def test_the_second_takes_over_when_the_first_is_killed(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a"), fleet.owner() as owner:
        with schedulers.running(path, "first") as first:
            first.await_log("leading: term 1")
            with schedulers.running(path, "second", NOTIFY_SOCKET="") as second:
                second.await_log("scheduler started")
                await _make_due(owner)
                first.await_log("job web: run 1, 2 tasks")
                assert second.logged("leading") == 0
                first.process.kill()
                second.await_log("leading: term 2")
                await _make_due(owner)
                second.await_log("job web: run 2, 0 tasks")
                assert second.stop() == 0
        assert await kit.one(owner, "SELECT count(*) FROM tasks") == 2


async def test_one_that_hangs_loses_the_lead_and_does_nothing_more(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a"), fleet.owner() as owner:
        with schedulers.running(path, "first") as first:
            first.await_log("leading: term 1")
            first.process.send_signal(signal.SIGSTOP)
            with schedulers.running(path, "second") as second:
                second.await_log("leading: term 2")
                await _make_due(owner)
                first.process.send_signal(signal.SIGCONT)
                second.await_log("job web: run 1, 2 tasks")
                wait.until(
                    lambda: first.logged("not leading any more") or first.logged("cannot be reach"),
                    what="the end of the first one's lead",
                )
                assert first.logged("job web") == 0
                assert first.logged("leading: term") == 1
                assert second.stop() == 0
            first.await_log("leading: term 3")
        assert await kit.one(owner, "SELECT count(*) FROM runs") == 1


async def test_a_file_that_is_broken_is_reported_and_the_old_one_stays(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    notify = str(fleet.directory / "notify")
    query = "SELECT saves FROM hosts"
    async with agents(fleet, "rack1-a"), fleet.owner() as owner:
        with (
            receiver(notify) as systemd,
            schedulers.running(path, "one", NOTIFY_SOCKET=notify) as scheduler,
        ):
            scheduler.await_log("fleet.yaml: 2 targets and 1 hosts changed")
            schedulers.write(fleet, JOBS.replace("saves: 1}", "save: 1}"))
            scheduler.process.send_signal(signal.SIGHUP)
            scheduler.await_log("fleet.yaml was not reloaded")
            assert scheduler.logged("unknown key 'save': did you mean 'saves'?") == 1
            assert scheduler.logged("fleet.yaml:6:27:") == 1
            schedulers.write(fleet, JOBS.replace("saves: 1}", "saves: 9}"))
            scheduler.process.send_signal(signal.SIGHUP)
            scheduler.await_log("fleet.yaml was reloaded")
            scheduler.await_log("fleet.yaml: 0 targets and 1 hosts changed")
            assert await kit.one(owner, query) == 9
            assert scheduler.stop() == 0
            heard = told(systemd)
        assert heard[0] == "READY=1"
        assert heard[-1] == "STOPPING=1"
        assert sum(each.startswith("RELOADING=1") for each in heard) == 2
        assert "STATUS=leading, term 1" in heard


async def test_a_scheduler_waits_for_the_database_and_writes_its_metrics(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    metrics = fleet.directory / "fleet.prom"
    async with agents(fleet, "rack1-a"):
        fleet.cluster.sql(f"ALTER DATABASE {fleet.name} ALLOW_CONNECTIONS false")
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("cannot be reached")
            fleet.cluster.sql(f"ALTER DATABASE {fleet.name} ALLOW_CONNECTIONS true")
            scheduler.await_log("leading: term 1")
            wait.until(lambda: _series(metrics).get("mapsave_fleet_scheduler_leading") == 1.0)
            found = _series(metrics)
            assert found['mapsave_fleet_host_guests{host="rack1-a"}'] == 3
            assert found['mapsave_fleet_target_slots{target="nas1"}'] == 2
            assert 'mapsave_fleet_job_next_run_timestamp_seconds{job="web"}' in found
            assert os.stat(metrics).st_mode & 0o777 == 0o644
            fleet.cluster.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{fleet.name}' AND application_name LIKE 'mapsave scheduler%'"
            )
            scheduler.await_log("leading: term 2")
            assert scheduler.stop() == 0


async def test_a_scheduler_ends_although_the_database_hangs(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    pids = (
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'mapsave scheduler%' "
        f"AND datname = '{fleet.name}'"
    )
    with schedulers.running(path, "one") as scheduler:
        scheduler.await_log("leading: term 1")
        backends = [int(each) for each in fleet.cluster.sql(pids).split()]
        assert len(backends) == 2
        try:
            for each in backends:
                os.kill(each, signal.SIGSTOP)
            assert scheduler.stop() == 0
        finally:
            for each in backends:
                os.kill(each, signal.SIGCONT)


async def _make_due(owner: Connection) -> None:
    """Have the job have missed a run, once a scheduler has set its clock."""
    query = "UPDATE job_clock SET last_due = now() - interval '400 days'"
    async with asyncio.timeout(wait.LONG):
        while True:
            if (await owner.execute(query)).rowcount == 1:
                return
            await asyncio.sleep(0.05)


def _series(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}
