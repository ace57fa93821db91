"""The picture of an operation over time."""

import pytest
from mapsave.pictures import course

from tests.pictures import read

MIB = 1 << 20
SAMPLES = [
    (100.0, "prepare", 0, 0),
    (101.0, "write", 0, 0),
    (102.0, "write", 200 * MIB, 400 * MIB),
    (104.0, "write", 400 * MIB, 400 * MIB),
    (104.0, "sync", 0, 0),
]
STEPS = [(100.0, "begin"), (101.0, "migrate"), (104.5, "commit")]


def rects(picture: str, kind: str) -> dict[str, tuple[float, float, float]]:
    """Return x, width and height of the rectangles of a class, by what the pointer shows."""
    return {
        each[0].text or "": tuple(float(each.attrib[key]) for key in ("x", "width", "height"))
        for each in read.parsed(picture).iter(f"{read.SVG}rect")
        if each.get("class") == kind and len(each)
    }


def test_phases_and_rates_are_where_they_were() -> None:
    picture = course.drawn(course.Shown("save", ["good"], 100.0, 105.0, STEPS, SAMPLES))
    phases = rects(picture, "used3")
    left = phases["prepare: 1 s"][0]
    second = phases["prepare: 1 s"][1]
    assert phases["write: 3 s"][:2] == (left + second, 3 * second)
    assert phases["sync: 1 s"][:2] == (left + 4 * second, second)
    rates = rects(picture, "used2")
    assert rates["200.0 MiB/s"][:2] == (left + second, second)
    assert rates["100.0 MiB/s"][:2] == (left + 2 * second, 2 * second)
    assert rates["200.0 MiB/s"][2] == 2 * rates["100.0 MiB/s"][2]
    words = read.texts(picture)
    assert "200.0 MiB/s" in words  # the top of the scale
    assert words[words.index("4.500 s") + 1] == "commit"


def test_without_samples_the_steps_are_phases() -> None:
    picture = course.drawn(course.Shown("save", [], 100.0, 105.0, STEPS, []))
    assert set(rects(picture, "used3")) == {"begin: 1 s", "migrate: 3.5 s", "commit: 500 ms"}
    assert not rects(picture, "used2")


@pytest.mark.parametrize("samples", [[], [(100.0, "prepare", 0, 0)], [(99.0, "a", 5, 5)] * 3])
def test_what_took_no_time_has_a_picture(samples: list[tuple[float, str, int, int]]) -> None:
    read.parsed(course.drawn(course.Shown("check", [], 100.0, 100.0, [], samples)))
