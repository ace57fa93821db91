"""When jobs are due, without a database."""

import datetime

from mapsave.fleet import clock
from mapsave.jobs.schedule import Schedule

NIGHTLY = Schedule("0 2 * * *", "UTC")
JITTERED = Schedule("0 2 * * *", "UTC", True, 3600.0)


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(f"2026-03-{text}+00:00")


def test_due_once_and_the_clock_is_that_of_the_schedule() -> None:
    assert clock.due("a", NIGHTLY, at("01T02:00"), at("02T01:59")) is None
    found = clock.due("a", NIGHTLY, at("01T02:00"), at("02T02:00:01"))
    assert found == clock.Due(at("02T02:00"), at("02T02:00"), False)
    assert clock.due("a", NIGHTLY, found.clock, at("02T23:00")) is None


def test_several_missed_runs_are_one() -> None:
    now = at("09T12:00")
    assert clock.due("a", NIGHTLY, at("01T02:00"), now) == clock.Due(at("02T02:00"), now, False)
    assert clock.due("a", NIGHTLY, now, at("10T01:00")) is None


def test_a_run_that_is_not_made_up_for_may_be_a_little_late() -> None:
    schedule = Schedule("0 2 * * *", "UTC", False)
    late = clock.due("a", schedule, at("01T02:00"), at("02T02:03"))
    soon = clock.due("a", schedule, at("01T02:00"), at("02T02:01"))
    assert late is not None
    assert soon is not None
    assert (late.is_skipped, soon.is_skipped) == (True, False)


def test_jitter_is_the_same_for_each_scheduler_and_another_for_each_job() -> None:
    moments = {name: clock.next_run(name, JITTERED, at("01T02:00")) for name in "abcdef"}
    assert len(set(moments.values())) == 6
    for name, moment in moments.items():
        assert moment == clock.next_run(name, JITTERED, at("01T02:00"))
        assert at("02T02:00") <= moment < at("02T03:00")
        second = datetime.timedelta(seconds=1)
        assert clock.due(name, JITTERED, at("01T02:00"), moment - second) is None
        found = clock.due(name, JITTERED, at("01T02:00"), moment)
        assert found is not None
        assert found.nominal == at("02T02:00")


def test_what_a_schedule_is_recognized_by() -> None:
    assert clock.text(NIGHTLY) == "0 2 * * * UTC"
    assert clock.text(Schedule("@daily")) == "@daily"
