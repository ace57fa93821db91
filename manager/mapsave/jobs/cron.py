"""Check when a save job runs: five fields as in crontab(5), or a word such as ``@daily``."""

import datetime
import re

import cronsim

WORDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_FIELDS = (  # name, greatest value, what it is made of
    ("minute", 59, "0-59"),
    ("hour", 23, "0-23"),
    ("day of the month", 31, "1-31, or L for the last"),
    ("month", 12, "1-12 or jan-dec"),
    ("day of the week", 7, "0-7 or sun-sat"),
)
_LONGEST = 500  # characters: every minute written out has 170
_SOME_DAY = datetime.datetime(2024, 1, 1)
_STEP = re.compile(r"/([0-9]+)")


def check(schedule: str) -> str:
    """Return ``schedule`` with single spaces; raise ValueError naming the field that is wrong.

    A schedule that never comes, such as the 31st of February, is wrong too.
    """
    if schedule.startswith("@"):
        if schedule not in WORDS:
            raise ValueError(f"{schedule!r} is not one of {', '.join(WORDS)}")
        return schedule
    fields = schedule.split()
    if len(fields) != len(_FIELDS):
        names = ", ".join(name for name, *_ in _FIELDS)
        raise ValueError(f"needs five fields ({names}), not {len(fields)}")
    checked = " ".join(fields)
    if len(checked) > _LONGEST:
        raise ValueError(f"has {len(checked)} characters; {_LONGEST} are enough for any schedule")
    for index, field in enumerate(fields):
        _check_field(index, field)
    try:
        first = next(cronsim.CronSim(checked, _SOME_DAY), None)
    except cronsim.CronSimError:
        first = None  # each field is right by itself: no such day in those months
    if first is None:
        raise ValueError(f"{checked!r} never occurs: those months have no such day")
    return checked


def expression(schedule: str) -> str:
    """Return the five fields that a checked ``schedule`` means."""
    return WORDS.get(schedule, schedule)


def _check_field(index: int, field: str) -> None:
    """Raise ValueError unless ``field`` is right where the others are any."""
    name, greatest, values = _FIELDS[index]
    # cronsim takes */90 for minute 0 of each hour, which is not what anybody means by it.
    if any(int(step) > greatest for step in _STEP.findall(field)):
        raise ValueError(f"{name}: the step in {field!r} is not in 1-{greatest}")
    alone = ["*"] * len(_FIELDS)
    alone[index] = field
    try:
        cronsim.CronSim(" ".join(alone), _SOME_DAY)
    except cronsim.CronSimError:
        raise ValueError(
            f"{name}: {field!r} is neither * nor a list of {values} (such as 1,5 or 1-5 or */5)"
        ) from None
