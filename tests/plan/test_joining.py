"""Which gaps are worth to be filled, by figures of a fast disk."""

import pytest
from mapsave.image.gaps import LENGTHS, Gaps
from mapsave.plan import joining, probe

MANY = 1 << 18


def gaps_of(length: int, number: int = MANY) -> Gaps:
    """Return so many gaps, all of that length."""
    counted = [number if length <= most else 0 for most in LENGTHS]
    return Gaps(tuple(counted), tuple(each * length for each in counted))


@pytest.mark.parametrize(
    ("run", "gap", "filled"),
    [
        (1, 1, True),
        (4, 4, True),
        (16, 16, True),
        (1, 8, False),  # eight times the data would become resident
        (64, 64, False),  # a request is faster than so many zeros
    ],
)
def test_alternating_runs(run: int, gap: int, filled: bool) -> None:
    assert bool(joining.longest(gaps_of(gap), MANY * run, probe.TYPICAL)) is filled


def test_a_slow_disk_is_worth_longer_gaps() -> None:
    slow = {size: {depth: 1e-3 for depth in costs} for size, costs in probe.TYPICAL.reads.items()}
    figures = probe.Probe(slow, slow, slow, buffered=1e-8, cached_reads=1e-8)
    assert joining.longest(gaps_of(64), MANY * 64, figures) == 64


def test_not_for_a_few() -> None:
    assert joining.longest(gaps_of(1, 1000), MANY, probe.TYPICAL) == 0
    assert not joining.may_gain(1000, probe.TYPICAL)
