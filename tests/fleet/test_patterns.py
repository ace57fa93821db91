"""Which guests of which hosts a job means."""

import re

import pytest
from mapsave.fleet import patterns
from mapsave.fleet.patterns import Pattern, Place

PLACES = [
    Place("rack1-a", "web01"),
    Place("rack1-a", "db01"),
    Place("rack1-b", "web01"),
    Place("rack2-a", "web02"),
    Place("rack2-a", "mail@home"),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("web*@rack1-*", Pattern("web*", "rack1-*")),
        ("web*", Pattern("web*", "*")),
        ("mail@home@rack2-a", Pattern("mail@home", "rack2-a")),
    ],
)
def test_parse(text: str, found: Pattern) -> None:
    assert patterns.parse(text) == found


@pytest.mark.parametrize("text", ["", "@", "web@", "@rack1-a"])
def test_an_empty_side_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no"):
        patterns.parse(text)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["web*@rack1-*"], [0, 2]),
        (["web*"], [0, 2, 3]),
        (["*@rack2-a", "web01"], [0, 2, 3, 4]),
        (["db01@rack1-a", "db01"], [1]),
        (["DB01"], []),
        (["web0[2-9]"], [3]),
        (["mail@home@*"], [4]),
        (["web01@rack1"], []),
    ],
)
def test_chosen(words: list[str], found: list[int]) -> None:
    assert patterns.chosen(words, [*PLACES, *PLACES]) == [PLACES[n] for n in found]


def test_first() -> None:
    assert patterns.first(["rack2-*", "*-a", "rack1-a"], "rack1-a") == "*-a"
    assert patterns.first(["rack2-*"], "rack1-a") is None


@pytest.mark.parametrize(
    "pattern",
    ["web*", "w?b", "web[0-9]", "web[!0-9]", "a.b", "a+(b)", "[^a]", "[]x]", "x[", "\\w", "*"],
)
def test_regular_expressions_suit_what_the_patterns_do(pattern: str) -> None:
    """By Python's, which mean the same here as PostgreSQL's."""
    names = [
        "web1",
        "webx",
        "web",
        "wxb",
        "a.b",
        "axb",
        "a+(b)",
        "^",
        "b",
        "a",
        "]",
        "x[",
        "\\w",
        "w",
    ]
    found = [name for name in names if re.match(patterns.regex(pattern), name)]
    assert found == [name for name in names if patterns.matches(pattern, name)]
