"""What a save-all would come to, by what earlier images took."""

from typing import Any

from mapsave.config import Guest
from mapsave.evacuation import forecast
from mapsave.evacuation.save_targets import Target
from mapsave.image.store import Entry

MIB = 1 << 20


def image(megabytes: Any, seconds: Any) -> Entry:
    known = {"data_bytes": megabytes, "duration_s": seconds}
    if isinstance(megabytes, int):
        known["data_bytes"] = megabytes * MIB
    return Entry("i", "/i", 0, 0, 0.0, None, known, None)


def test_rate_is_the_median_of_the_last_that_tell() -> None:
    telling = [image(100, 1), image(200, 1), image(4000, 1)]
    silent = [image(1, 0.5), image(None, 1), image(100, 0), image(100, "long"), image("x", 1)]
    assert forecast.rate_of([*silent, *telling]) == 200 * MIB
    assert forecast.rate_of(silent) is None
    assert forecast.rate_of([image(100, 1)] * 10 + [image(9000, 1)] * 90) == 100 * MIB


def targets(*sizes: int) -> list[Target]:
    return [
        Target(Guest(str(number)), size=size * MIB, ram=size * MIB)
        for number, size in enumerate(sizes)
    ]


def test_what_does_not_fit_leaves_its_time_to_those_behind_it() -> None:
    lines = targets(100, 900, 300)
    lines.append(Target(Guest("off"), "not_running"))
    forecast.foretell(lines, 5.0, 100 * MIB)
    assert [line.outcome for line in lines] == ["planned", "no_time", "planned", "not_running"]
    assert [line.seconds for line in lines] == [1.0, 9.0, 3.0, None]
    error = lines[1].error
    assert error is not None
    assert error.id == "check.deadline"
    assert "900.0 MiB at 100.0 MiB/s within 5.00 s" in error.message


def test_without_a_deadline_all_fit_and_without_a_rate_nothing_is_said() -> None:
    lines = targets(100, 900)
    forecast.foretell(lines, 0.001, None)
    assert [(line.outcome, line.seconds) for line in lines] == [("planned", None)] * 2
    forecast.foretell(lines, None, 100 * MIB)
    assert [(line.outcome, line.seconds) for line in lines] == [("planned", 1.0), ("planned", 9.0)]
