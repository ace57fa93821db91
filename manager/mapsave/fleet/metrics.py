"""The fleet's metrics, from its database: per host, job and storage target, and of the queue."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from mapsave.fleet import clock, reports
from mapsave.fleet.reports import ENDED, Row

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.settings import Settings


@dataclass(frozen=True)
class Facts:
    """What the metrics are made of: rows of ``reports``; ``next_runs`` in seconds, by job."""

    queue: Row
    hosts: Sequence[Row]
    jobs: Sequence[Row]
    targets: Sequence[Row]
    next_runs: Mapping[str, float] = field(default_factory=dict)


async def look(connection: Connection, settings: Settings) -> Facts:
    """Return what the database knows now. Raises psycopg.Error."""
    jobs = await reports.jobs(connection)
    due = {}
    for row in jobs:
        job = settings.jobs.get(row["job"])
        if job is not None and job.schedule is not None and row["last_due"] is not None:
            moment = clock.next_run(row["job"], job.schedule, row["last_due"])
            due[row["job"]] = moment.timestamp()
    return Facts(
        await reports.queue(connection),
        await reports.hosts(connection, settings.silent_after),
        jobs,
        await reports.targets(connection),
        due,
    )


def text(facts: Facts | None, *, leads: bool | None = None) -> bytes:
    """Return the series in Prometheus' text format.

    ``leads`` is whether the scheduler that writes them leads, if one does; one that does not has no
    ``facts``, for those are the leader's to write.
    """
    return prometheus_client.generate_latest(_View(facts, leads))


class _View:
    """What ``generate_latest`` takes for a registry."""

    def __init__(self, facts: Facts | None, leads: bool | None) -> None:
        self._facts = facts
        self._leads = leads

    def collect(self) -> Iterator[Metric]:
        if self._leads is not None:
            words = "Whether this scheduler leads."
            yield _one("scheduler_leading", words, float(self._leads))
        if self._facts is not None:
            yield from _of_queue(self._facts.queue)
            now = self._facts.queue["now"]
            yield from _of_hosts(self._facts.hosts)
            yield from _of_jobs(self._facts)
            yield from _of_targets(self._facts.targets, now)


def _one(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mapsave_fleet_{name}", words, value=value)


def _family(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mapsave_fleet_{name}", words, labels=labels)


def _of_queue(queue: Row) -> Iterator[Metric]:
    tasks = _family("tasks", "Tasks that are not finished, by state.", "state")
    for state in ("later", "todo", "doing"):
        tasks.add_metric([state], queue[state])
    yield tasks
    oldest = queue["oldest"]
    words = "How long the oldest task that may begin has not finished."
    yield _one("oldest_task_seconds", words, _age(oldest, queue["now"]))
    yield _one("requests", "Requests of people that are not answered.", queue["requests"])
    yield _one("led", "Whether a scheduler leads.", float(queue["is_led"]))


def _of_hosts(hosts: Sequence[Row]) -> Iterator[Metric]:
    word = _family("host_last_word_timestamp_seconds", "When the agent was heard of last.", "host")
    silent = _family("host_silent", "Whether it is silent for too long, or always was.", "host")
    queued = _family("host_tasks", "Tasks that are not finished.", "host")
    running = _family("host_operations", "Operations that hold a slot.", "host")
    guests = _family("host_guests", "Guests that the agent has reported.", "host")
    for row in hosts:
        labels = [row["host"]]
        word.add_metric(labels, _seconds(row["last_word"]))
        silent.add_metric(labels, float(row["is_silent"] is not False))
        queued.add_metric(labels, row["queued"])
        running.add_metric(labels, row["running"])
        guests.add_metric(labels, row["guests"])
    yield from (word, silent, queued, running, guests)


def _of_jobs(facts: Facts) -> Iterator[Metric]:
    last = _family("job_last_run_timestamp_seconds", "When it was run last.", "job")
    words = "When a run ended last of which every task succeeded; 0 where none did."
    good = _family("job_last_success_timestamp_seconds", words, "job")
    words = "Tasks of the last run that has ended, by outcome."
    tasks = _family("job_last_run_tasks", words, "job", "outcome")
    due = _family("job_next_run_timestamp_seconds", "When it runs next.", "job")
    for row in facts.jobs:
        job = row["job"]
        last.add_metric([job], _seconds(row["last_run"]))
        good.add_metric([job], _seconds(row["last_success"]))
        if job in facts.next_runs:
            due.add_metric([job], facts.next_runs[job])
        if row["ended"] is not None:
            for outcome in ENDED:
                tasks.add_metric([job, outcome], (row["counts"] or {}).get(outcome, 0))
    yield from (last, good, tasks, due)


def _of_targets(targets: Sequence[Row], now: datetime.datetime) -> Iterator[Metric]:
    slots = _family("target_slots", "Operations that may use it at once.", "target")
    used = _family("target_slots_used", "Operations that use it.", "target")
    waiting = _family("target_waiting", "Tasks whose host waits for a slot.", "target")
    oldest = _family("target_oldest_wait_seconds", "How long the first has waited.", "target")
    for row in targets:
        labels = [row["target"]]
        slots.add_metric(labels, row["saves"])
        used.add_metric(labels, row["used"])
        waiting.add_metric(labels, row["waiting"])
        oldest.add_metric(labels, _age(row["waiting_since"], now))
    yield from (slots, used, waiting, oldest)


def _age(when: datetime.datetime | None, now: datetime.datetime) -> float:
    return 0.0 if when is None else max((now - when).total_seconds(), 0.0)


def _seconds(when: datetime.datetime | None) -> float:
    return 0.0 if when is None else when.timestamp()
