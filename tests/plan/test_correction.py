"""Predictions are corrected by what saves have taken, and by no single one very far."""

from mapsave.config import SaveSettings
from mapsave.plan import correction, planner, probe
from mapsave.plan.cost import Prediction, Way
from mapsave.plan.planner import Learned

from tests.kit.layouts import half_zero

WAY = Way(direct_io=True, zero_pages="none", channels=8, preallocate=False)


def predicted(seconds: float, way: Way = WAY) -> Prediction:
    return Prediction(way, seconds, 1 << 30, 1 << 30)


def factor(factors: dict[str, float] | None, way: Way = WAY) -> float:
    assert factors is not None
    return factors[correction.kind(way)]


def test_a_disk_that_is_always_slower_is_known_after_some_saves() -> None:
    factors: dict[str, float] = {}
    for _ in range(10):
        seconds = correction.corrected(predicted(2.0), factors).seconds
        factors = correction.after(factors, predicted(seconds), 5.0) or {}
    assert 2.4 < factor(factors) < 2.6
    assert correction.corrected(predicted(2.0), factors).seconds == 2.0 * factor(factors)


def test_one_wild_outcome_spoils_nothing() -> None:
    for took in (0.001, 1e6):
        assert 0.6 < factor(correction.after({}, predicted(1.0), took)) < 1.6


def test_no_factor_gets_out_of_bounds() -> None:
    factors: dict[str, float] = {}
    for _ in range(50):
        factors = correction.after(factors, predicted(1.0), 1e6) or {}
    assert factor(factors) == correction.MOST
    for _ in range(50):
        factors = correction.after(factors, predicted(1.0), 0.0) or {}
    assert factor(factors) == 1 / correction.MOST


def test_short_saves_say_nothing() -> None:
    assert correction.after({}, predicted(0.1), 0.4) is None


def test_another_way_is_not_touched_and_may_become_the_choice() -> None:
    learned = Learned(half_zero(1), probe.TYPICAL)
    first = planner.plan(SaveSettings(), learned, planner.Bounds()).chosen
    factors = {"direct-none": 4.0, "direct-none-preallocated": 4.0}
    assert correction.kind(first.way) in factors
    learned = Learned(half_zero(1), probe.TYPICAL, factors=factors)
    second = planner.plan(SaveSettings(), learned, planner.Bounds()).chosen
    assert correction.kind(second.way) not in factors
    assert first.seconds < second.seconds < 4 * first.seconds
