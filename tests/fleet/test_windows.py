"""Windows: over midnight, and where the clocks are changed."""

import datetime
import zoneinfo

import pytest
from mapsave.fleet import windows

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def span(text: str, at: str) -> tuple[str, str]:
    """Return the opening that a time of Berlin is in, or the next, in UTC."""
    moment = datetime.datetime.fromisoformat(at)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=BERLIN)
    found = windows.span(windows.parse(text), moment, BERLIN)
    assert found.opens.tzinfo is datetime.UTC
    assert found.closes.tzinfo is datetime.UTC
    return f"{found.opens:%d %H:%M}", f"{found.closes:%d %H:%M}"


@pytest.mark.parametrize(
    ("text", "at", "found"),
    [
        ("01:00-05:00", "2026-01-10T00:30", ("10 00:00", "10 04:00")),
        ("01:00-05:00", "2026-01-10T01:00", ("10 00:00", "10 04:00")),
        ("01:00-05:00", "2026-01-10T04:59:59", ("10 00:00", "10 04:00")),
        ("01:00-05:00", "2026-01-10T05:00", ("11 00:00", "11 04:00")),
        ("22:00-05:00", "2026-01-10T23:00", ("10 21:00", "11 04:00")),
        ("22:00-05:00", "2026-01-11T04:00", ("10 21:00", "11 04:00")),
        ("22:00-05:00", "2026-01-11T12:00", ("11 21:00", "12 04:00")),
        ("20:00-24:00", "2026-01-11T23:59", ("11 19:00", "11 23:00")),
        ("00:00-06:00", "2026-01-11T00:00", ("10 23:00", "11 05:00")),
    ],
)
def test_span(text: str, at: str, found: tuple[str, str]) -> None:
    assert span(text, at) == found


def test_hour_that_the_clocks_leave_out() -> None:
    """On 29 March 2026 the clocks go from 02:00 to 03:00, which is 01:00 UTC."""
    assert span("01:00-05:00", "2026-03-29T01:30") == ("29 00:00", "29 03:00")
    assert span("02:30-05:00", "2026-03-29T01:30") == ("29 01:00", "29 03:00")
    assert span("01:00-02:30", "2026-03-29T01:30") == ("29 00:00", "29 01:00")
    # Nothing is left of that day's window.
    assert span("02:10-02:50", "2026-03-29T01:30") == ("30 00:10", "30 00:50")


def test_hour_that_comes_twice() -> None:
    """On 25 October 2026 the clocks go from 03:00 to 02:00, which is 01:00 UTC."""
    assert span("01:00-05:00", "2026-10-25T01:30") == ("24 23:00", "25 04:00")
    assert span("02:30-04:00", "2026-10-25T01:30") == ("25 00:30", "25 03:00")
    # It closes the first time, and is not open again the second time.
    assert span("01:00-02:30", "2026-10-25T00:20+00:00") == ("24 23:00", "25 00:30")
    assert span("01:00-02:30", "2026-10-25T01:20+00:00") == ("26 00:00", "26 01:30")


@pytest.mark.parametrize(
    "text", ["", "1-5", "01:00", "01:00-01:00", "00:00-24:00", "24:00-01:00", "01:60-02:00", "a-b"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|time of the day"):
        windows.parse(text)
