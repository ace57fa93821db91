"""The scheduler, by a clock that the test turns."""

import asyncio
import contextlib
import datetime
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from mapsave import config as configuration
from mapsave.evacuation import record
from mapsave.history import history
from mapsave.history.history import History
from mapsave.jobs.job import Job
from mapsave.service import job_files, restore_first
from mapsave.service.scheduler import Scheduler

from tests.kit import wait

NOON = datetime.datetime(2026, 5, 4, 12, 0, 30, tzinfo=datetime.UTC)
_GUEST = {"db": {"emulator": {"memory": "8M"}}}


def _after(**more: float) -> datetime.datetime:
    return NOON + datetime.timedelta(**more)


class _Changed(asyncio.Event):
    """What the scheduler waits for; ``idle`` is set while it does, with nothing left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = asyncio.Event()

    def set(self) -> None:
        self.idle.clear()
        super().set()

    async def wait(self) -> Literal[True]:
        if not self.is_set():
            self.idle.set()
        return await super().wait()


class Host:
    """A clock, a directory of jobs, and a list of those that were started when."""

    def __init__(self, directory: Path, kept: History) -> None:
        self.now = NOON
        self.started: list[tuple[str, datetime.datetime]] = []
        self.busy: set[str] = set()
        self.failing: set[str] = set()
        self.kept = kept
        self.held: str | None = None
        self.scheduler = Scheduler(kept, self._start, lambda: self.held, lambda: self.now)
        self._changed = self.scheduler._changed = _Changed()
        self._jobs = directory / "jobs.d"
        self._jobs.mkdir()
        file = directory / "manager.yaml"
        file.write_text(yaml.safe_dump({"jobs": str(self._jobs), "guests": _GUEST}))
        self._config = configuration.load(file, {})

    async def _start(self, job: Job) -> str | None:
        if job.name in self.failing:
            raise RuntimeError("no luck")
        if job.name in self.busy:
            return "it is busy"
        self.started.append((job.name, self.now))
        return None

    def write(self, name: str, schedule: Any) -> None:
        """Write a job; a schedule that is no mapping is its times in UTC."""
        given = schedule if isinstance(schedule, dict) else {"cron": schedule}
        content = {"job": name, "guests": ["db"], "schedule": {"time_zone": "UTC", **given}}
        (self._jobs / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def remove(self, name: str) -> None:
        (self._jobs / f"{name}.yaml").unlink()

    async def read(self) -> None:
        """Have the scheduler take over the jobs."""
        jobs = job_files.load(self._config)
        assert not jobs.broken, jobs.broken
        await self.scheduler.set_jobs(jobs)

    async def turn(self, when: datetime.datetime) -> None:
        """Turn the clock, and wait until the scheduler has looked at it."""
        self.now = when
        await self.read()
        async with asyncio.timeout(wait.LONG):
            await self._changed.idle.wait()

    def next_run(self, job: str) -> datetime.datetime | None:
        found = self.scheduler.next_run(job)
        return None if found is None else datetime.datetime.fromtimestamp(found, datetime.UTC)

    async def last_run(self, job: str) -> datetime.datetime | None:
        """Return the last run that the journal knows of."""
        found = await self.kept.last_run(job)
        return None if found is None else datetime.datetime.fromtimestamp(found, datetime.UTC)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with history.opened(tmp_path / "journal.db") as kept:
        found = Host(tmp_path, kept)
        running = asyncio.create_task(found.scheduler.run())
        try:
            yield found
            assert not running.done(), running
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def test_a_job_runs_when_it_is_due_and_once(host: Host) -> None:
    host.write("hourly", "0 * * * *")
    await host.read()
    assert host.next_run("hourly") == _after(minutes=59, seconds=30)
    await host.turn(_after(minutes=59))
    assert host.started == []
    due = _after(minutes=59, seconds=31)
    await host.turn(due)
    assert host.started == [("hourly", due)]
    await host.turn(due + datetime.timedelta(seconds=5))
    assert len(host.started) == 1
    assert host.next_run("hourly") == _after(hours=1, minutes=59, seconds=30)
    assert await host.last_run("hourly") == due


async def test_however_long_the_host_slept_a_job_runs_once(host: Host) -> None:
    host.write("hourly", "0 * * * *")
    await host.read()
    await host.turn(_after(days=3))
    assert host.started == [("hourly", _after(days=3))]
    assert host.next_run("hourly") == _after(days=3, minutes=59, seconds=30)


async def test_a_run_is_left_out_while_the_one_before_is_under_way(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.write("hourly", "0 * * * *")
    await host.read()
    host.busy.add("hourly")
    await host.turn(_after(hours=1))
    assert host.started == []
    assert "job hourly: it is busy; skipping this run" in caplog.text
    assert await host.last_run("hourly") == NOON  # when it was first seen
    host.busy.clear()
    await host.turn(_after(hours=2))
    assert host.started == [("hourly", _after(hours=2))]


async def test_one_that_cannot_be_started_costs_the_others_nothing(host: Host) -> None:
    host.write("bad", "0 * * * *")
    host.write("good", "0 * * * *")
    await host.read()
    host.failing.add("bad")
    await host.turn(_after(hours=1))
    assert host.started == [("good", _after(hours=1))]
    assert host.next_run("bad") == _after(hours=1, minutes=59, seconds=30)


@contextlib.contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Take away what the journal writes runs to, and give it back."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("ALTER TABLE runs RENAME TO gone")
        yield
        other.execute("ALTER TABLE gone RENAME TO runs")


async def test_a_journal_that_fails_costs_no_run(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.write("hourly", "0 * * * *")
    await host.read()
    with _broken(tmp_path / "journal.db"):
        host.now = _after(hours=1)
        await host.read()  # asks nothing of the journal: the job is known
        async with asyncio.timeout(wait.LONG):
            while "cannot write" not in caplog.text:  # noqa: ASYNC110 (a log tells no one)
                await asyncio.sleep(0.001)
    await host.turn(_after(hours=2))
    assert [when for _, when in host.started] == [_after(hours=1), _after(hours=2)]


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_missed_run_is_caught_up_once(host: Host, persistent: bool) -> None:
    await host.kept.ran("daily", _after(days=-5).timestamp())
    host.write("daily", {"cron": "30 2 * * *", "persistent": persistent})
    await host.turn(NOON)
    assert host.started == ([("daily", NOON)] if persistent else [])
    assert host.next_run("daily") == _after(hours=14, minutes=29, seconds=30)
    await host.turn(_after(minutes=1))
    assert len(host.started) == int(persistent)


async def test_a_job_seen_for_the_first_time_has_missed_nothing(host: Host) -> None:
    host.write("daily", "30 2 * * *")
    await host.turn(NOON)
    assert host.started == []
    assert await host.last_run("daily") == NOON


async def test_a_new_schedule_counts_and_a_removed_job_does_not_run(host: Host) -> None:
    host.write("one", "0 * * * *")
    host.write("two", "0 * * * *")
    host.write("jittered", {"cron": "0 * * * *", "jitter": "50m"})
    await host.read()
    drawn = host.next_run("jittered")
    host.write("one", "30 * * * *")
    host.remove("two")
    await host.read()
    assert host.next_run("one") == _after(minutes=29, seconds=30)
    assert host.next_run("two") is None
    assert host.next_run("jittered") == drawn  # a reload does not put it off again
    await host.turn(_after(minutes=58))
    assert host.started == [("one", _after(minutes=58))]


async def test_a_clock_that_was_years_ahead(host: Host) -> None:
    """As after a boot without a battery for the clock, until the network tells the time."""
    host.now = _after(days=3650)
    host.write("daily", "30 2 * * *")
    await host.turn(host.now)
    await host.turn(NOON)
    assert host.next_run("daily") == _after(hours=14, minutes=29, seconds=30)


async def test_a_clock_that_is_corrected_a_little_runs_nothing_twice(host: Host) -> None:
    host.write("hourly", "0 * * * *")
    await host.read()
    due = _after(minutes=59, seconds=30)
    await host.turn(due)
    await host.turn(due - datetime.timedelta(seconds=2))
    await host.turn(due + datetime.timedelta(seconds=1))
    assert [name for name, _ in host.started] == ["hourly"]


async def test_a_missed_run_waits_until_guests_are_restored(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.write("hourly", "0 * * * *")
    await host.read()
    host.held = "guests come back first"
    await host.turn(_after(hours=3))
    await asyncio.to_thread(wait.until, lambda: host.held in caplog.text, what="the log")
    await host.turn(_after(hours=3, seconds=5))
    assert host.started == []
    assert caplog.text.count("waiting: job hourly: guests come back first") == 1
    host.held = None
    await host.turn(_after(hours=3, seconds=10))
    await asyncio.to_thread(wait.until, lambda: host.started, what="the run")
    assert host.started == [("hourly", _after(hours=3, seconds=10))]


def test_a_record_is_waited_for_ten_minutes(tmp_path: Path) -> None:
    """The image of its guest is there; a guest that was not saved is not waited for."""
    clock = [50.0]
    first = restore_first.RestoreFirst(tmp_path, lambda: clock[0])
    path = tmp_path / record.NAME

    def write(image: Path) -> None:
        entry = {"guest": "web", "image": str(image), "ran": True}
        path.write_text(json.dumps({"version": 1, "guests": [entry]}))

    assert first.reason() is None
    write(tmp_path / "nosuch")
    assert first.reason() is None
    write(path)
    for clock[0], waits in ((100.0, True), (699.0, True), (700.0, False), (9000.0, False)):
        assert (first.reason() is not None) is waits
    path.unlink()
    assert first.reason() is None
    write(path)
    assert "10 m" in str(first.reason())
    path.write_text("not a record")
    assert first.reason() is None
