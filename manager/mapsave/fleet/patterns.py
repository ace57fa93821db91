"""Which guests a job of the fleet means: ``web*@rack1-*``, a guest's pattern at a host's.

Both are patterns of fnmatch(3), upper and lower case are different. Without ``@`` any host is
meant. A guest's name may contain an ``@``: the last one counts.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Place:
    """A guest on a host, by their names."""

    host: str
    guest: str


@dataclass(frozen=True)
class Pattern:
    """Guests by a pattern of their names, at hosts by a pattern of theirs."""

    guest: str
    host: str


def parse(text: str) -> Pattern:
    """Return the pattern that ``text`` means; raise ValueError where a side of it is empty."""
    guest, at, host = text.rpartition("@")
    if not at:
        guest, host = host, "*"
    if not guest:
        raise ValueError(
            f"{text!r} names no guest: write GUEST@HOST, such as '*@{host or 'rack1-*'}'"
        )
    if not host:
        raise ValueError(f"{text!r} names no host: write GUEST@HOST, or {guest!r} for any host")
    return Pattern(guest, host)


def is_wild(word: str) -> bool:
    """Return whether a word is a pattern, not the name of one thing."""
    return bool(_WILD & set(word))


def matches(pattern: str, name: str) -> bool:
    """Return whether a name suits a pattern of fnmatch(3)."""
    return _compiled(pattern).match(name) is not None


def regex(pattern: str) -> str:
    """Return the regular expression of PostgreSQL that suits what a pattern of fnmatch(3) does."""
    found, rest = "", pattern
    while rest:
        head, rest = rest[0], rest[1:]
        end = rest.find("]", 2 if rest.startswith("!") else 1)
        if head == "[" and end > 0:
            inside = rest[:end].replace("\\", "\\\\").replace("[", "\\[")
            found += f"[^{inside[1:]}]" if inside.startswith("!") else f"[{_literal(inside)}]"
            rest = rest[end + 1 :]
        else:
            found += {"*": ".*", "?": "."}.get(head, re.escape(head))
    return f"^({found})$"


def _literal(inside: str) -> str:
    return f"\\{inside}" if inside.startswith("^") else inside


def first(patterns: Iterable[str], name: str) -> str | None:
    """Return the first of ``patterns`` that a name suits; None where it suits none."""
    return next((each for each in patterns if matches(each, name)), None)


def chosen(words: Iterable[str], places: Iterable[Place]) -> list[Place]:
    """Return those of ``places`` that suit one of ``words``, each once, in the order of places.

    Raises ValueError for a word that is not a pattern.
    """
    wanted = [parse(word) for word in words]
    guests_at: dict[str, list[str]] = {}
    found = []
    for place in dict.fromkeys(places):
        guests = guests_at.get(place.host)
        if guests is None:
            guests = [each.guest for each in wanted if matches(each.host, place.host)]
            guests_at[place.host] = guests
        if first(guests, place.guest) is not None:
            found.append(place)
    return found


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
