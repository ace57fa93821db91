"""The series of a fleet: their values, and that the documentation has each of them."""

import re

from mapsave.fleet import metrics

from tests.fleet.some_facts import AGO, NOW, SOME
from tests.kit import tree


def series(text: bytes) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("mapsave_fleet_"): float(value) for name, value in lines}


def test_values() -> None:
    assert series(metrics.text(SOME, leads=True)) == {
        "scheduler_leading": 1,
        'tasks{state="later"}': 4,
        'tasks{state="todo"}': 2,
        'tasks{state="doing"}': 1,
        "oldest_task_seconds": 90,
        "requests": 1,
        "led": 1,
        'host_last_word_timestamp_seconds{host="rack1-a"}': AGO.timestamp(),
        'host_last_word_timestamp_seconds{host="rack1-b"}': AGO.timestamp(),
        'host_last_word_timestamp_seconds{host="odd\\"\\\\"}': 0,
        'host_silent{host="rack1-a"}': 0,
        'host_silent{host="rack1-b"}': 1,
        'host_silent{host="odd\\"\\\\"}': 1,
        'host_tasks{host="rack1-a"}': 2,
        'host_tasks{host="rack1-b"}': 2,
        'host_tasks{host="odd\\"\\\\"}': 2,
        'host_operations{host="rack1-a"}': 1,
        'host_operations{host="rack1-b"}': 0,
        'host_operations{host="odd\\"\\\\"}': 0,
        'host_guests{host="rack1-a"}': 3,
        'host_guests{host="rack1-b"}': 3,
        'host_guests{host="odd\\"\\\\"}': 3,
        'job_last_run_timestamp_seconds{job="nightly"}': AGO.timestamp(),
        'job_last_run_timestamp_seconds{job="new"}': 0,
        'job_last_success_timestamp_seconds{job="nightly"}': AGO.timestamp(),
        'job_last_success_timestamp_seconds{job="new"}': 0,
        'job_last_run_tasks{job="nightly",outcome="succeeded"}': 5,
        'job_last_run_tasks{job="nightly",outcome="failed"}': 2,
        'job_last_run_tasks{job="nightly",outcome="cancelled"}': 0,
        'job_last_run_tasks{job="nightly",outcome="aborted"}': 0,
        'job_next_run_timestamp_seconds{job="new"}': 1767312000.5,
        'target_slots{target="nas1"}': 4,
        'target_slots{target="nas2"}': 8,
        'target_slots_used{target="nas1"}': 1,
        'target_slots_used{target="nas2"}': 0,
        'target_waiting{target="nas1"}': 1,
        'target_waiting{target="nas2"}': 0,
        'target_oldest_wait_seconds{target="nas1"}': 90,
        'target_oldest_wait_seconds{target="nas2"}': 0,
    }
    assert NOW > AGO


def test_a_scheduler_that_stands_by_writes_that_and_nothing_else() -> None:
    assert series(metrics.text(None, leads=False)) == {"scheduler_leading": 0}
    assert "scheduler_leading" not in series(metrics.text(SOME))


def test_the_documentation_has_each_series_and_no_other() -> None:
    documented = re.findall(
        r"^\| `mapsave_fleet_(\w+)` \| gauge \| ([^|]*)\|",
        (tree.ROOT / "docs/metrics.md").read_text(),
        re.MULTILINE,
    )
    made: dict[str, set[str]] = {}
    for name in series(metrics.text(SOME, leads=True)):
        family, _, labels = name.partition("{")
        made[family] = set(re.findall(r'(\w+)="', labels))
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in documented} == made


def test_the_alert_rules_name_series_that_there_are() -> None:
    there = {name.partition("{")[0] for name in series(metrics.text(SOME, leads=True))}
    rules = (tree.ROOT / "examples/prometheus/mapsave.rules.yml").read_text()
    named = set(re.findall(r"mapsave_fleet_(\w+)", rules))
    assert named
    assert named <= there
