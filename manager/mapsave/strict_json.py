"""JSON as RFC 8259 has it, read from those who may mean harm, and written for anyone.

Python's own reader takes more: ``NaN``, numbers that become infinite, the same key twice, and half
of a surrogate pair. What it takes would be printed again, and other readers refuse it.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

Facts = Mapping[str, object]  # an object of JSON that is passed on

MAX_DEPTH = 32  # what we write has five levels; each level costs those who walk it a call
_MAX_DIGITS = 20  # a 64-bit number has no more, and no size or time needs one
# Bytes of a file name that are no text are kept as these (PEP 383); no other half is meant.
_ESCAPED = b"\\u"
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
    _check_depth(found, max_depth)
    # Half a pair can only come from an escape, or from a text that is broken already.
    if not isinstance(raw, bytes) or _ESCAPED in raw:
        _check_texts(found)
    return found


def dumps(data: object, **options: Any) -> str:
    """Return JSON; ``options`` are those of ``json.dumps``. Raises ValueError for an infinity."""
    return json.dumps(data, allow_nan=False, **options)


def encoded(data: object) -> bytes:
    """Return JSON in UTF-8, ten times as fast as ``dumps``; an infinity is null.

    Bytes of file names that are not text become escapes, what JSON does not know becomes text.
    """
    try:
        return msgspec.json.encode(data, enc_hook=str)
    except (UnicodeEncodeError, OverflowError):  # such bytes; numbers of more than 64 bits
        text = dumps(data, default=str, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace")


def decoded(raw: bytes | str) -> Any:
    """Return what ``raw``, which ``encoded`` or ``dumps`` made, holds. Raises ValueError."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:  # it may have bytes of file names, as escapes
        return json.loads(raw)


def indented(data: object) -> str:
    """Return JSON for people, as ``dumps`` with ``indent=2`` does, ten times as fast."""
    plain = dumps(data)
    try:
        return msgspec.json.format(plain, indent=2)
    except msgspec.DecodeError:  # names that are not text
        return dumps(data, indent=2)


def _check_depth(value: object, most: int) -> None:
    """Raise ValueError where ``value`` has more than ``most`` levels."""
    level = [value]
    for _ in range(most):
        inside: list[object] = []
        for each in level:
            if type(each) is dict:
                inside += each.values()
            elif type(each) is list:
                inside += each
        level = [each for each in inside if type(each) is dict or type(each) is list]
        if not level:
            return
    raise ValueError(_too_deep(most))


def _check_texts(value: object) -> None:
    """Raise ValueError where a text has half of a surrogate pair."""
    if isinstance(value, str):
        if _BROKEN.search(value):
            raise ValueError("half of a surrogate pair")
    elif isinstance(value, dict):
        for key, inside in value.items():
            _check_texts(key)
            _check_texts(inside)
    elif isinstance(value, list):
        for inside in value:
            _check_texts(inside)


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
