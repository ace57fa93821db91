"""The hours of the day in which a job's saves may begin: ``22:00-05:00``, in a time zone.

Summer time is as in ``jobs.schedule``: a time that the clocks leave out is the moment they are put
forward, one that comes twice counts the first time.
"""

import datetime
import re
from dataclasses import dataclass

from mapsave.jobs import schedule

_TEXT = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")
_DAY = datetime.timedelta(days=1)
# The window of yesterday may last until today; one that the clocks leave out comes the day after.
_DAYS = range(-1, 4)


@dataclass(frozen=True)
class Window:
    """From ``opens`` to ``closes``, of the next day where that is not later."""

    opens: datetime.time
    closes: datetime.time


@dataclass(frozen=True)
class Span:
    """One opening of a window, in UTC."""

    opens: datetime.datetime
    closes: datetime.datetime


def parse(text: str) -> Window:
    """Return the window of a text such as ``01:00-05:00``; raise ValueError for another.

    It may end at 24:00. One that ends when it begins is refused: all day is no window.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a window: write HH:MM-HH:MM, such as 01:00-05:00")
    hours = [int(each) for each in match.groups()]
    opens = _time(text, hours[0], hours[1])
    closes = datetime.time() if hours[2:] == [24, 0] else _time(text, hours[2], hours[3])
    if opens == closes:
        raise ValueError(f"the window {text!r} ends when it begins: leave it out for all day")
    return Window(opens, closes)


def span(window: Window, at: datetime.datetime, zone: datetime.tzinfo) -> Span:
    """Return the opening of ``window`` that ``at`` is in, otherwise the next one after it."""
    today = at.astimezone(zone).date()
    for day in _DAYS:
        date = today + day * _DAY
        until = date if window.closes > window.opens else date + _DAY
        found = Span(_moment(date, window.opens, zone), _moment(until, window.closes, zone))
        if at < found.closes and found.opens < found.closes:
            return found
    raise ValueError(f"{window} does not open after {at}")  # no zone leaves out so many days


def _time(text: str, hour: int, minute: int) -> datetime.time:
    try:
        return datetime.time(hour, minute)
    except ValueError:
        raise ValueError(f"{text!r}: {hour:02d}:{minute:02d} is not a time of the day") from None


def _moment(date: datetime.date, time: datetime.time, zone: datetime.tzinfo) -> datetime.datetime:
    wall = datetime.datetime.combine(date, time, zone)
    return schedule.existing(wall).astimezone(datetime.UTC)
