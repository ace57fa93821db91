"""JSON as RFC 8259 has it, read from those who may mean harm, and written for anyone.

Python's own reader takes more: ``NaN``, numbers that become infinite, the same key twice, and half
of a surrogate pair. What it takes would be printed again, and other readers refuse it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

Facts = Mapping[str, object]  # an object of JSON that is passed on

MAX_DEPTH = 32  # what we write has five levels; each level costs those who walk it a call
_MAX_DIGITS = 20  # a 64-bit number has no more, and no size or time needs one
# Bytes of a file name that are no text are kept as these (PEP 383); no other half is meant.
_BROKEN = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def loads(raw: bytes | str, *, max_depth: int = MAX_DEPTH, whole: bool = False) -> Any:
    """Return what ``raw`` holds: numbers that are finite and of at most 64 bits, whole texts.

    With ``whole`` 1.0 is the integer 1, as JSON has but one kind of number. Raises ValueError,
    which says what is wrong.
    """
    try:
        found = json.loads(
            raw,
            parse_int=_integer,
            parse_float=_whole if whole else _number,
            parse_constant=_constant,
            object_pairs_hook=_members,
        )
    except RecursionError:
        raise ValueError(_too_deep(max_depth)) from None
    _check(found, max_depth, max_depth)
    return found


def dumps(data: object, **options: Any) -> str:
    """Return JSON; ``options`` are those of ``json.dumps``. Raises ValueError for an infinity."""
    return json.dumps(data, allow_nan=False, **options)


def _check(value: object, left: int, most: int) -> None:
    """Raise ValueError where ``value`` has more than ``left`` levels, or a text is broken."""
    if isinstance(value, str):
        if _BROKEN.search(value):
            raise ValueError("half of a surrogate pair")
        return
    if not isinstance(value, dict | list):
        return
    if not left:
        raise ValueError(_too_deep(most))
    if isinstance(value, dict):
        for key in value:
            _check(key, left, most)
    for inside in value.values() if isinstance(value, dict) else value:
        _check(inside, left - 1, most)


def _too_deep(most: int) -> str:
    return f"nested more than {most} deep"


def _integer(word: str) -> int:
    if len(word) > _MAX_DIGITS or not -(1 << 63) <= int(word) < 1 << 64:
        raise ValueError(f"the number {word[:_MAX_DIGITS]}… has more than 64 bits")
    return int(word)


def _number(word: str) -> float:
    found = float(word)
    if not math.isfinite(found):
        raise ValueError(f"the number {word[:_MAX_DIGITS]} is out of range")
    return found


def _whole(word: str) -> float:
    found = _number(word)
    return int(found) if found.is_integer() else found


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given more than once")
    return found
