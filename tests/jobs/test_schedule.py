"""When jobs run: what a schedule may be, and the times it means, clocks put forward and back."""

import datetime
import random
import shutil
import zoneinfo
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.jobs import cron, schedule
from mapsave.jobs.schedule import Schedule

BERLIN = "Europe/Berlin"  # forward 2026-03-29 02:00 to 03:00, back 2026-10-25 03:00 to 02:00


@pytest.mark.parametrize(
    "text",
    [
        *("30 2 * * *", "*/5 * * * *", "0 0 1,15 * *", "0 0 * jan-mar MON", "0 9-17/2 * * 1-5"),
        *("0 0 29 2 *", "0 0 31 2 1", "59 23 31 12 7", "1-5,10-20/3,59 * * * *", *cron.WORDS),
        *("0 0 L * *", "0 3 * * 5L", "0 3 * * 1#2", ",".join(map(str, range(60))) + " * * * *"),
    ],
)
def test_good_schedule(text: str) -> None:
    assert cron.check(text) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "five fields"),
        ("* * * *", "not 4"),
        ("* * * * * *", "not 6"),
        ("@reboot", "'@reboot' is not one of @hourly"),
        ("60 * * * *", "minute: '60' is neither * nor a list of 0-59"),
        ("* 24 * * *", "hour: '24' is neither * nor a list of 0-23"),
        ("* * 0 * *", "day of the month: '0' is neither * nor a list of 1-31"),
        ("* * * 13 *", "month: '13' is neither * nor a list of 1-12 or jan-dec"),
        ("* * * * 8", "day of the week: '8' is neither * nor a list of 0-7 or sun-sat"),
        ("* * * foo *", "month: 'foo'"),
        ("jan * * * *", "minute: 'jan'"),
        ("5-1 * * * *", "minute: '5-1'"),
        ("*/0 * * * *", "minute: '*/0'"),
        ("*/ * * * *", "minute: '*/'"),
        ("*/60 * * * *", "minute: the step in '*/60' is not in 1-59"),
        ("1,*/90 * * * *", "minute: the step in '1,*/90'"),
        ("* */24 * * *", "hour: the step in '*/24' is not in 1-23"),
        ("1,,2 * * * *", "minute: '1,,2'"),
        ("-1 * * * *", "minute: '-1'"),
        ("1- * * * *", "minute: '1-'"),
        ("*-5 * * * *", "minute: '*-5'"),
        ("+1 * * * *", "minute: '+1'"),
        ("² * * * *", "minute: '²'"),
        ("0 0 30 2 *", "'0 0 30 2 *' never occurs"),
        ("0 0 31 4,6,9,11 *", "never occurs"),
        ("* * */20 * 1L", "never occurs"),
        ("9" * 5000 + " * * * *", "has 5008 characters"),
    ],
)
def test_bad_schedule(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        cron.check(text)
    assert words in str(caught.value)


@settings(max_examples=400, deadline=None)
@given(
    st.text("0123456789*/-,@ monjaful²L#W", max_size=20)
    | st.lists(st.text("0123456789*/-,L#", min_size=1, max_size=6), min_size=5, max_size=5).map(
        " ".join
    )
)
def test_random_schedule_is_checked_or_refused(text: str) -> None:
    try:
        checked = cron.check(text)
    except ValueError:
        return
    assert cron.check(checked) == checked
    assert text.split() == checked.split()
    after = datetime.datetime(2026, 3, 28, tzinfo=datetime.UTC)
    assert schedule.next_run(Schedule(checked, BERLIN), after) > after


def utc(text: str) -> datetime.datetime:
    """Return the moment of an ISO time with its distance from UTC."""
    return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)


def runs(fields: str, after: str, until: str, zone: str = BERLIN) -> list[str]:
    """Return the runs between two moments as times of the zone, each found from the one before."""
    last, found = utc(after), []
    while (last := schedule.next_run(Schedule(fields, zone), last)) <= utc(until):
        assert last.tzinfo is datetime.UTC
        found.append(last.astimezone(zoneinfo.ZoneInfo(zone)).strftime("%d %H:%M%z"))
    return found


def test_words_mean_times() -> None:
    year = ("2026-01-01T00:00:00+01:00", "2027-01-01T00:00:00+01:00")
    assert runs("@yearly", *year) == ["01 00:00+0100"]
    assert len(runs("@monthly", *year)) == 12
    assert len(runs("@weekly", *year)) == 52
    assert len(runs("@daily", *year)) == len(runs("@midnight", *year)) == 365
    assert len(runs("@hourly", *year)) == 365 * 24


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        # 02:30 does not exist: it comes when the clocks are put forward, and not again.
        ("30 2 * * *", ["28 02:30+0100", "29 03:00+0200"]),
        ("30 2 29 3 *", ["29 03:00+0200"]),
        ("0,30 2 29 * *", ["29 03:00+0200"]),
        ("*/30 2 29 * *", ["29 03:00+0200"]),
        ("30 2,3 29 * *", ["29 03:00+0200", "29 03:30+0200"]),
        ("0 2,3 29 * *", ["29 03:00+0200"]),
        ("30 */2 29 3 *", ["29 00:30+0100", "29 03:00+0200", "29 04:30+0200"]),
        ("30 1-3 29 3 *", ["29 01:30+0100", "29 03:00+0200", "29 03:30+0200"]),
        # Every hour is every hour.
        ("30 * 29 3 *", ["29 00:30+0100", "29 01:30+0100", "29 03:30+0200", "29 04:30+0200"]),
        ("30 0-23 29 3 *", ["29 00:30+0100", "29 01:30+0100", "29 03:30+0200", "29 04:30+0200"]),
    ],
)
def test_clocks_are_put_forward(fields: str, found: list[str]) -> None:
    assert runs(fields, "2026-03-28T00:00:00+01:00", "2026-03-29T05:00:00+02:00") == found


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        # 02:30 comes twice: the first time counts.
        ("30 2 * * *", ["24 02:30+0200", "25 02:30+0200", "26 02:30+0100"]),
        ("0,30 2 25 * *", ["25 02:00+0200", "25 02:30+0200"]),
        ("*/30 2 25 * *", ["25 02:00+0200", "25 02:30+0200"]),
        ("30 1-3 25 * *", ["25 01:30+0200", "25 02:30+0200", "25 03:30+0100"]),
        ("0 3 25 * *", ["25 03:00+0100"]),
    ],
)
def test_clocks_are_put_back(fields: str, found: list[str]) -> None:
    assert runs(fields, "2026-10-24T00:00:00+02:00", "2026-10-26T12:00:00+01:00") == found


def test_every_hour_goes_on_by_elapsed_time() -> None:
    back = runs("0 * 25 * *", "2026-10-24T00:00:00+02:00", "2026-10-26T00:00:00+01:00")
    assert len(back) == 25
    assert back[1:5] == ["25 01:00+0200", "25 02:00+0200", "25 02:00+0100", "25 03:00+0100"]
    span = ("2026-03-29T00:59:00+01:00", "2026-03-29T04:00:00+02:00")
    assert len(runs("*/10 * * * *", *span)) == 13


def test_a_time_of_the_hour_that_has_come_already_does_not_come_again() -> None:
    nightly = Schedule("30 2 * * *", BERLIN)
    tomorrow = utc("2026-10-26T02:30:00+01:00")
    for after in ("02:30:00+02:00", "02:50:00+02:00", "02:10:00+01:00", "02:30:00+01:00"):
        assert schedule.next_run(nightly, utc(f"2026-10-25T{after}")) == tomorrow
    first = utc("2026-10-25T02:30:00+02:00")
    for after in ("02:29:59.999999+02:00", "02:10:00+02:00", "00:00:00+02:00"):
        assert schedule.next_run(nightly, utc(f"2026-10-25T{after}")) == first


def test_a_midnight_that_does_not_exist() -> None:
    # Cairo put its clocks forward at 00:00 of 2026-04-24.
    span = ("2026-04-23T00:00:00+02:00", "2026-04-25T12:00:00+03:00")
    assert runs("@daily", *span, "Africa/Cairo") == ["24 01:00+0300", "25 00:00+0300"]
    assert runs("30 * 24 4 *", *span, "Africa/Cairo")[0] == "24 01:30+0300"


def test_a_day_that_does_not_exist() -> None:
    # Samoa went from the 29th to the 31st of December 2011.
    span = ("2011-12-28T12:00:00-10:00", "2011-12-31T12:00:00+14:00")
    found = runs("0 6 * * *", *span, "Pacific/Apia")
    assert found == ["29 06:00-1000", "31 00:00+1400", "31 06:00+1400"]


@settings(max_examples=100, deadline=None)
@given(
    fields=st.sampled_from(
        ["*/7 * * * *", "30 2 * * *", "*/20 1-3 * * *", "0 */3 * * *", "15 2 L * *", "@hourly"]
    ),
    after=st.datetimes(datetime.datetime(2026, 1, 1), datetime.datetime(2027, 1, 1)),
    zone=st.sampled_from([BERLIN, "UTC", "Australia/Lord_Howe", "America/St_Johns"]),
)
def test_nothing_comes_between_a_moment_and_the_next_run(
    fields: str, after: datetime.datetime, zone: str
) -> None:
    known = Schedule(fields, zone)
    start = after.replace(tzinfo=datetime.UTC)
    found = schedule.next_run(known, start)
    assert found > start
    assert found.second == found.microsecond == 0
    for part in (0.01, 0.5, 0.99):
        assert schedule.next_run(known, start + (found - start) * part) == found


def test_a_missed_run_is_caught_up_once() -> None:
    nightly = Schedule("30 2 * * *", BERLIN)
    last, now = utc("2026-11-01T02:31:00+01:00"), utc("2026-11-20T12:00:00+01:00")
    assert schedule.missed(nightly, last, now)
    assert not schedule.missed(nightly, now, now)  # it ran just now, for all of them
    assert not schedule.missed(nightly, last, utc("2026-11-02T02:29:59+01:00"))
    assert schedule.missed(nightly, last, utc("2026-11-02T02:30:00+01:00"))
    assert not schedule.missed(nightly, None, now)
    assert not schedule.missed(Schedule("30 2 * * *", BERLIN, persistent=False), last, now)
    assert not schedule.missed(nightly, now, last)  # the host's clock was restored


def test_jitter_is_within_its_bounds_and_differs() -> None:
    chance = random.Random(5)
    known = Schedule("@daily", jitter=600.0)
    found = [schedule.jitter(known, chance).total_seconds() for _ in range(200)]
    assert all(0 <= each < 600 for each in found)
    assert max(found) - min(found) > 300
    assert schedule.jitter(Schedule("@daily"), chance) == datetime.timedelta(0)


@pytest.mark.parametrize(
    ("variable", "winter", "summer"),
    [
        ("Europe/Berlin", 1, 2),
        (":Europe/Berlin", 1, 2),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1, 2),
        ("<+03>-3", 3, 3),
        ("UTC0", 0, 0),
        ("", 0, 0),
        ("/nowhere", 0, 0),
    ],
)
def test_the_host_s_zone_is_that_of_tz(variable: str, winter: int, summer: int) -> None:
    zone = schedule.local_zone({"TZ": variable})
    for month, hours in ((1, winter), (7, summer)):
        noon = datetime.datetime(2026, month, 1, tzinfo=zone)
        assert noon.utcoffset() == datetime.timedelta(hours=hours)


def test_the_host_s_zone_is_that_of_its_file(tmp_path: Path) -> None:
    local = tmp_path / "localtime"
    assert schedule.local_zone({}, str(local)) is datetime.UTC
    path = next(path for each in zoneinfo.TZPATH if (path := Path(each, BERLIN)).exists())
    shutil.copy(path, local)
    summer = datetime.datetime(2026, 7, 1, tzinfo=schedule.local_zone({}, str(local)))
    assert summer.utcoffset() == datetime.timedelta(hours=2)
    after = utc("2026-07-01T00:00:00+02:00")
    zone = schedule.local_zone()
    assert schedule.next_run(Schedule("0 6 * * *"), after).astimezone(zone).hour == 6
    local.write_text("no zone")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        schedule.local_zone({}, str(local))


def test_the_variable_tz_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    after = utc("2026-07-01T00:00:00+00:00")
    assert schedule.next_run(Schedule("0 6 * * *"), after) == utc("2026-07-02T06:00:00+09:00")
