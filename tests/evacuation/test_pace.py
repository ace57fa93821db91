"""How many saves at once, by a simulated disk; and what they would come to, by earlier images."""

from collections.abc import Callable
from typing import Any

import pytest
from mapsave.config import Guest
from mapsave.evacuation import forecast, parallelism
from mapsave.evacuation.save_targets import Target
from mapsave.image.store import Entry

MIB = 1 << 20
POLL = 0.25


class Disk:
    """Saves of endless guests, as many as the pace has slots, on a disk that writes ``rate(n)``."""

    def __init__(self, found: parallelism.Pace, rate: Callable[[int], float]) -> None:
        self.pace = found
        self.rate = rate
        self.now = 0.0
        self.written = 0.0
        self.most = 0

    def run(self, seconds: float, *, guests: int = 100) -> int:
        """Let time pass; return the slots at the end."""
        end = self.now + seconds
        while self.now < end:
            count = min(self.pace.slots, guests)
            self.most = max(self.most, count)
            self.now += POLL
            self.written += self.rate(count) * POLL
            names = frozenset(map(str, range(count)))
            self.pace.note(parallelism.Look(self.now, int(self.written), names, names))
        return self.pace.slots


@pytest.mark.parametrize(
    ("rate", "slots"),
    [
        pytest.param(lambda n: n * 100 * MIB, 8, id="each has a path of its own"),
        pytest.param(lambda n: min(n, 4) * 100 * MIB, 5, id="full with four"),
        pytest.param(lambda n: 300 * MIB, 3, id="full with one"),
        pytest.param(lambda n: 300 * MIB / n, 2, id="a disk that has to seek"),
        pytest.param(lambda n: min(n, 4) * 100 * MIB if n < 5 else 50 * MIB, 4, id="a cliff"),
        pytest.param(lambda n: 300 * MIB * 1.05**n, 3, id="hardly faster"),
    ],
)
def test_slots_follow_the_disk(rate: Callable[[int], float], slots: int) -> None:
    disk = Disk(parallelism.Pace(8), rate)
    assert disk.pace.slots == 2
    assert disk.run(60) == slots
    assert disk.run(60) == slots, "it does not settle"


def test_never_more_than_the_most() -> None:
    assert Disk(parallelism.Pace(3), lambda n: n * MIB).run(60) == 3
    assert Disk(parallelism.Pace(1), lambda n: n * MIB).run(60) == 1


def test_a_number_that_was_asked_for_stays() -> None:
    for number in (1, 5, 20):
        disk = Disk(parallelism.Pace(8, number), lambda n: n * MIB)
        assert disk.run(60) == number
        assert disk.most == number


def test_fewer_guests_than_slots_say_nothing_of_the_slots() -> None:
    disk = Disk(parallelism.Pace(8), lambda n: n * 100 * MIB)
    assert disk.run(60, guests=1) == 2
    assert disk.run(60, guests=100) == 8


def test_rate_is_that_of_all_and_of_late() -> None:
    disk = Disk(parallelism.Pace(4, 2), lambda n: n * 100 * MIB)
    assert disk.pace.rate is None
    disk.run(3)
    assert disk.pace.rate == pytest.approx(200 * MIB, rel=0.01)
    disk.rate = lambda n: n * 10 * MIB  # its cache is full
    disk.run(30)
    assert disk.pace.rate == pytest.approx(20 * MIB, rel=0.01)


def test_what_begins_and_ends_within_a_second_says_nothing_of_the_disk() -> None:
    found = parallelism.Pace(4, 1)
    for number in range(100):
        one = frozenset([str(number // 2)])
        found.note(parallelism.Look(number / 2, number * MIB, one, one))
    assert found.rate is None
    only = frozenset("a")
    for number in range(100):  # it is at its fsync
        found.note(parallelism.Look(50 + number, 100 * MIB, only, frozenset()))
    assert found.rate is None


def test_filling_the_queues_is_not_writing() -> None:
    found = parallelism.Pace(4, 1)
    one = frozenset("a")
    written = 0
    for number in range(5):
        found.note(parallelism.Look(float(number), written, one, one))
        written += 800 if number == 0 else 100
    assert found.rate == 100


def measured(rate: int) -> parallelism.Pace:
    """Return a pace that has measured a disk of ``rate`` bytes per second."""
    disk = Disk(parallelism.Pace(8, 1), lambda n: rate)
    disk.run(5)
    assert disk.pace.rate == pytest.approx(rate)
    return disk.pace


@pytest.mark.parametrize(
    ("size", "remaining", "left", "fits"),
    [
        (1000, [], 10.0, True),
        (1001, [], 10.0, False),
        (500, [500], 10.0, True),  # side by side both take ten seconds
        (600, [500], 10.0, False),
        (100, [100_000], 2.0, True),  # the other has no chance anyway
        (100, [1000], 10.0, False),  # the other would have made it without this one
        (100, [800], 10.0, True),
        (300, [300, 300], 10.0, True),
        (10**15, [], None, True),
        (1, [], 0.0, False),
        (1, [], -1.0, False),
    ],
)
def test_fits(size: int, remaining: list[int], left: float | None, fits: bool) -> None:
    assert measured(100).fits(size, remaining, left) is fits


def test_what_is_not_measured_fits_while_there_is_time() -> None:
    found = parallelism.Pace(8)
    assert found.fits(10**15, [10**15], 1.0)
    assert not found.fits(1, [], 0.0)


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
    assert "900.0 MiB at 100.0 MiB/s within 5 s" in error.message


def test_without_a_deadline_all_fit_and_without_a_rate_nothing_is_said() -> None:
    lines = targets(100, 900)
    forecast.foretell(lines, 0.001, None)
    assert [(line.outcome, line.seconds) for line in lines] == [("planned", None)] * 2
    forecast.foretell(lines, None, 100 * MIB)
    assert [(line.outcome, line.seconds) for line in lines] == [("planned", 1.0), ("planned", 9.0)]
