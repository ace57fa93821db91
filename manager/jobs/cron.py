"""Check the schedule of a save job: five fields as in crontab(5), or a word such as ``@daily``."""

from __future__ import annotations

WORDS = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (  # name, least, greatest, names of the values from the least on
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),  # 0 and 7 are both Sunday
)
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


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
    sets = [_values(field, *known) for field, known in zip(fields, _FIELDS, strict=True)]
    _, _, days, months, _ = sets
    # With a day of the week given too, crontab(5) runs on either, so that always comes.
    if fields[4] == "*" and min(days) > max(_DAYS_OF_MONTH[month - 1] for month in months):
        raise ValueError(f"{schedule!r} never comes: no such month has a day {min(days)}")
    return " ".join(fields)


def _values(field: str, name: str, least: int, greatest: int, names: tuple[str, ...]) -> set[int]:
    """Return the numbers that one field means; raise ValueError if it is not right."""

    def number(text: str) -> int:
        if text.lower() in names:
            return least + names.index(text.lower())
        if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= greatest):
            raise ValueError(f"{name}: {text!r} is not within {least}-{greatest}")
        return int(text)

    values: set[int] = set()
    for item in field.split(","):
        span, slash, step = item.partition("/")
        if slash and not (step.isascii() and step.isdigit() and 0 < int(step[:9]) <= greatest):
            raise ValueError(f"{name}: the step in {item!r} is not within 1-{greatest}")
        first, dash, last = span.partition("-")
        if span == "*":
            low, high = least, greatest
        elif dash:
            low, high = number(first), number(last)
            if low > high:
                raise ValueError(f"{name}: {span!r} ends before it begins")
        elif slash:
            raise ValueError(f"{name}: a step needs '*' or a range before it, not {item!r}")
        else:
            low = high = number(span)
        values.update(range(low, high + 1, int(step) if slash else 1))
    return values
