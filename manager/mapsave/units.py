"""Sizes, durations and alignments: parsed from what people write, printed as they read it."""

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGTP])(?:i?B)?|B)?\s*", re.IGNORECASE)
_SIZE_FACTOR = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1024 * TIB}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_DURATION_FACTOR = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


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
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def parse_duration(text: str | int | float) -> float:
    """Return the seconds of ``90``, ``"15m"``, ``"1h30m"``, ``"250ms"``. Raises ValueError."""
    bare = str(text).strip()
    try:
        seconds = float(bare)
    except ValueError:
        parts = _DURATION_PART.findall(bare)
        if not parts or "".join(n + u for n, u in parts) != bare.replace(" ", ""):
            raise ValueError(f"not a duration: {text!r} (write 30s, 15m, 1h30m)") from None
        seconds = sum(float(number) * _DURATION_FACTOR[unit] for number, unit in parts)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"not a duration: {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as people read it: ``"12 ms"``, ``"3.41 s"``, ``"2 m 05 s"``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"


def round_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment
