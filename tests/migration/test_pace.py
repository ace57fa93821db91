"""When a save is too slow to go on with, and when it is not."""

import pytest
from mapsave.migration.pace import Pace, TooSlow

RAM = 1000


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seconds_until_given_up(
    pace: Pace, clock: Clock, rate: float, *, most: float = 30.0
) -> float | None:
    """Look four times a second at a save of ``rate`` bytes a second; None: it was let go on."""
    begun = clock.now
    while clock.now - begun < most:
        try:
            pace.look(min(RAM, int(rate * (clock.now - begun))), RAM)
        except TooSlow:
            return clock.now - begun
        clock.now += 0.25
    return None


@pytest.mark.parametrize(
    ("rate", "is_given_up"), [(1000, False), (400, False), (200, False), (50, True), (1, True)]
)
def test_a_third_of_the_predicted_pace_is_enough(rate: float, is_given_up: bool) -> None:
    """Predicted are 1000 bytes in 2 seconds."""
    clock = Clock()
    found = seconds_until_given_up(Pace((1.0, 2.0), 1.0, clock), clock, rate)
    assert (found is not None) == is_given_up
    assert found is None or found >= 1.0


def test_little_is_not_worth_a_restart() -> None:
    clock = Clock()
    # 6 seconds in all, 0.1 of them predicted.
    assert seconds_until_given_up(Pace((0.1,), 1.0, clock), clock, RAM / 6) is None
    assert seconds_until_given_up(Pace((0.1,), 1.0, clock), clock, RAM / 12) is not None
    # The other way would take half as long.
    assert seconds_until_given_up(Pace((1.0,), 10.0, clock), clock, RAM / 20) is None


def test_parts_that_are_slow_by_nature_are_no_reason() -> None:
    """The first tenth of the RAM takes nine seconds of ten."""
    clock = Clock()
    course = (9.0, *(9.0 + number / 9 for number in range(1, 10)))
    assert seconds_until_given_up(Pace(course, 0.1, clock), clock, RAM / 90, most=9) is None
    assert seconds_until_given_up(Pace((10.0,), 0.1, clock), clock, RAM / 90, most=9) is not None


def test_storage_that_hangs_is_not_cancelled_for_its_pace() -> None:
    clock = Clock()
    assert seconds_until_given_up(Pace((1.0,), 0.1, clock), clock, 0.0) is None


def test_it_says_how_long_it_would_have_taken() -> None:
    clock = Clock()
    pace = Pace((1.0,), 0.1, clock)
    with pytest.raises(TooSlow) as caught:
        for _ in range(100):
            pace.look(int((clock.now - 100) * 10), RAM)
            clock.now += 0.25
    assert caught.value.seconds == pytest.approx(100, rel=0.1)
