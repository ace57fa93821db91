"""Sizes, durations and times: parsed from what people write, written as they or programs read it.

In JSON a size is a number of bytes under a key that ends in ``bytes``, a duration a number of
seconds (``_s``), a rate ``bytes_per_s``, and a time is as ``timestamp`` writes it.
"""

import datetime
import re
import time

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# The years 1000 to 9998: the time of any zone is one of ``datetime`` as well.
_EARLIEST, _LATEST = -30610224000, 253370764799
_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGTP])(?:i?B)?|B)?\s*", re.IGNORECASE)
_SIZE_FACTOR = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1024 * TIB}
# The spellings of systemd.time(7); months and years are as long as there.
_DURATION_SPELLINGS = {
    1e-6: ("us", "µs", "μs", "usec"),
    1e-3: ("ms", "msec"),
    1.0: ("s", "sec", "second", "seconds"),
    60.0: ("m", "min", "minute", "minutes"),
    3600.0: ("h", "hr", "hour", "hours"),
    86400.0: ("d", "day", "days"),
    604800.0: ("w", "week", "weeks"),
    2629800.0: ("M", "month", "months"),
    31557600.0: ("y", "year", "years"),
}
_DURATION_FACTOR = {unit: each for each, units in _DURATION_SPELLINGS.items() for unit in units}
DURATION_UNITS = "|".join(sorted(_DURATION_FACTOR, key=len, reverse=True))  # a regular expression
_DURATION_PART = rf"(\d+(?:\.\d+)?)\s*({DURATION_UNITS})\s*"
_DURATION = re.compile(f"({_DURATION_PART})+")


def parse_size(text: str | int) -> int:
    """Return the bytes that ``text`` means: ``4096``, ``"64K"``, ``"1.5GiB"``.

    Letters are powers of 1024, as QEMU's ``-m`` has them. Raises ValueError for anything else,
    negative numbers and fractions of a byte included.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise ValueError(f"not a size: {text!r} (write bytes or a number with K, M, G or T)")
    # In integers: a float would round sizes beyond 2^53, and overflow on hundreds of digits.
    whole, _, fraction = match[1].partition(".")
    scaled = int(whole + fraction) * _SIZE_FACTOR[(match[2] or "").upper()]
    unit: int = 10 ** len(fraction)
    size, rest = divmod(scaled, unit)
    if rest:
        raise ValueError(f"not a whole number of bytes: {text!r}")
    return size


def format_size(size: int | float) -> str:
    """Return ``size`` bytes as people read it: ``"512 B"``, ``"4.0 GiB"``."""
    unit = next((unit for unit, one in _UNITS.items() if abs(size) < one * 1024), "TiB")
    return f"{in_unit(size, unit)} {unit}"


def in_unit(size: int | float, unit: str) -> str:
    """Return the number of ``unit`` in ``size`` bytes, as ``format_size`` has it."""
    return f"{size / _UNITS[unit]:.{0 if unit == 'B' else 1}f}"


def parse_duration(text: str | int | float) -> float:
    """Return the seconds of ``90``, ``"15m"``, ``"1h 30min"``, ``"250ms"``: units as systemd spells
    them. Raises ValueError."""
    bare = str(text).strip()
    try:
        seconds = float(bare)
    except ValueError:
        if not _DURATION.fullmatch(bare):
            raise ValueError(f"not a duration: {text!r} (write 30s, 15m, 1h30m)") from None
        parts = re.findall(_DURATION_PART, bare)
        seconds = sum(float(number) * _DURATION_FACTOR[unit] for number, unit in parts)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"not a duration: {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as people read it: ``"12 ms"``, ``"3.41 s"``, ``"2 m 05 s"``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _two(minutes, "m", rest, "s")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return _two(hours, "h", minutes, "m")
    return _two(hours // 24, "d", hours % 24, "h")


def format_ago(seconds: float) -> str:
    """Return how long ago something was, as people read it: ``"2 d ago"``, ``"just now"``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def _two(number: int, unit: str, rest: int, smaller: str) -> str:
    return f"{number} {unit}" + (f" {rest:02d} {smaller}" if rest else "")


def timestamp(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as JSON has it: RFC 3339, in UTC, to the
    millisecond. One that no ``datetime`` can be, as a file's may be, is the nearest.

    Tens of thousands of images have two each: ``datetime`` would take thrice as long.
    """
    whole, part = divmod(int(min(max(seconds, _EARLIEST), _LATEST) * 1000), 1000)
    year, month, day, hour, minute, second, *_ = time.gmtime(whole)
    date = f"{year:04d}-{month:02d}-{day:02d}"
    return f"{date}T{hour:02d}:{minute:02d}:{second:02d}.{part:03d}+00:00"


def format_time(when: datetime.datetime, *, precisely: bool = False) -> str:
    """Return a time as people read it, that of this host with its offset: ``"2026-11-26
    09:23:26+01:00"``, with milliseconds if ``precisely``."""
    return when.astimezone().isoformat(" ", "milliseconds" if precisely else "seconds")


def round_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment
