"""When a save job runs next: the fields of crontab(5) in a time zone, by the ``cronsim`` library.

Nothing here waits. Times that come in know their zone; times that go out are in UTC, so that they
can be compared and added to.

Summer time: a job of certain hours runs once for each time that its schedule names. A time that the
clocks leave out comes at the moment they are put forward; one that comes twice counts the first
time. A job of every hour goes on by elapsed time, as in Debian's cron(8).
"""

import datetime
import io
import os
import random
import struct
import zoneinfo
from collections.abc import Iterator, Mapping
from typing import Annotated

import cronsim

from mapsave import errors
from mapsave.jobs import cron
from mapsave.key_types import Duration, Text, Truth
from mapsave.keys import Check, Keys, Parse, help, nearest, written

LOCALTIME = "/etc/localtime"
_MOST_JITTER = 86400.0  # seconds
_MINUTE = datetime.timedelta(minutes=1)


def _time_zone(name: str) -> str:
    try:
        named_zone(name)
    except ValueError as error:
        guess = nearest(name, sorted(zoneinfo.available_timezones()))
        raise ValueError(f"{error}{guess}") from None
    return name


def _jitter(seconds: float) -> float:
    if seconds > _MOST_JITTER:
        raise ValueError("must be at most a day")
    return seconds


class Schedule(Keys, frozen=True):
    """When a job runs; its times alone may be given instead of the mapping."""

    cron: Annotated[
        str, Check(cron.check), help("Five fields as in crontab(5), or a name such as `@daily`.")
    ]
    time_zone: Annotated[
        Text | None,
        Check(_time_zone),
        help("Time zone of the schedule, such as `Europe/Berlin`; by default the host's."),
    ] = None
    persistent: Annotated[Truth, help("Whether to make up for missed runs, once.")] = True
    jitter: Annotated[
        Duration,
        Check(_jitter),
        help("Delay each run by a random time below this, at most `1d`."),
    ] = 0.0

    @property
    def zone(self) -> datetime.tzinfo:
        """The time zone that the fields mean. Raises ConfigError where the host's is not known."""
        return local_zone() if self.time_zone is None else named_zone(self.time_zone)


When = Annotated[
    Schedule | None,
    Parse(lambda value: value if isinstance(value, dict) else {"cron": value}),
    written("text or a mapping", {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Schedule"}]}),
    help("When to run: times as in crontab(5), a name such as `@daily`, or a mapping."),
]


def next_run(schedule: Schedule, after: datetime.datetime) -> datetime.datetime:
    """Return the first time of ``schedule`` later than ``after``, in UTC and without jitter.

    Raises ConfigError where the host's time zone is needed and not known.
    """
    for tick in _ticks(cron.expression(schedule.cron), after.astimezone(schedule.zone)):
        moment = tick.astimezone(datetime.UTC)
        # The hour that comes twice: by its clock, a time of the first one lies before us again.
        if moment > after:
            return moment
    raise ValueError(f"{schedule.cron!r} never occurs after {after}")  # cron.check refuses such


def missed(schedule: Schedule, last_run: datetime.datetime | None, now: datetime.datetime) -> bool:
    """Return whether a run is to be caught up: at least one should have been since ``last_run``.

    However many were missed, the answer is the same: run once, and note that as the last run.
    Where the job never ran (None) nothing was missed.
    """
    if not schedule.persistent or last_run is None:
        return False
    return next_run(schedule, last_run) <= now


def jitter(schedule: Schedule, random: random.Random) -> datetime.timedelta:
    """Return how long to put a run off: from 0 on, less than the schedule's jitter."""
    return datetime.timedelta(seconds=schedule.jitter * random.random())


def named_zone(name: str) -> zoneinfo.ZoneInfo:
    """Return the time zone ``name`` of the tz database; raise ValueError if there is none."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"this host has no time zone {name!r}") from None


def local_zone(
    environ: Mapping[str, str] = os.environ, localtime: str = LOCALTIME
) -> datetime.tzinfo:
    """Return the host's time zone: that of ``$TZ``, else of the file ``/etc/localtime``.

    As in tzset(3): ``$TZ`` is a name, a file, or a rule such as ``CET-1CEST,M3.5.0,M10.5.0/3``;
    empty, or without the file, it is UTC. Raises ConfigError for a zone that cannot be read.
    """
    name = environ.get("TZ", localtime).removeprefix(":")
    if not name:
        return datetime.UTC
    try:
        if not name.startswith("/"):
            return _named_or_rule(name)
        with open(name, "rb") as file:
            return zoneinfo.ZoneInfo.from_file(file, key="local")
    except FileNotFoundError:
        return datetime.UTC
    except (ValueError, OSError, struct.error) as error:
        raise errors.ConfigError(
            f"the host's time zone {name!r} cannot be read: {error}",
            hint="name one with 'time_zone:' in the job's schedule, or set $TZ to one",
        ) from None


def _named_or_rule(name: str) -> zoneinfo.ZoneInfo:
    try:
        return named_zone(name)
    except ValueError:
        # A file in the form of tzfile(5), version 2, that holds the rule and no times: its header
        # twice, each with one type of local time and its empty abbreviation.
        head = struct.pack(">4sc15x6l", b"TZif", b"2", 0, 0, 0, 0, 1, 1) + bytes(7)
        file = io.BytesIO(head * 2 + b"\n" + name.encode() + b"\n")
        return zoneinfo.ZoneInfo.from_file(file, key=name)


def _ticks(fields: str, after: datetime.datetime) -> Iterator[datetime.datetime]:
    """Yield the times of ``fields`` in the zone of ``after``, from about there on."""
    zone = after.tzinfo
    wall = cronsim.CronSim(fields, after.replace(tzinfo=None))
    if len(wall.hours) < 24:
        yield from (existing(tick.replace(tzinfo=zone)) for tick in wall)
        return
    minute, _, *days = fields.split()
    # The star of the hour is what has cronsim count elapsed time.
    yield from cronsim.CronSim(" ".join((minute, "*", *days)), after)


def existing(time: datetime.datetime) -> datetime.datetime:
    """Return ``time``, or if the clocks leave it out, the moment they are put forward."""
    while time.astimezone(datetime.UTC).astimezone(time.tzinfo) != time:
        time += _MINUTE
    return time
