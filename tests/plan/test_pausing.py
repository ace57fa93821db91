"""What a checkpoint is predicted to cost follows what is known of RAM and disk."""

from dataclasses import replace

import pytest
from mapsave.plan import correction, pausing
from mapsave.plan.pausing import Measured

GIB, MIB = 1 << 30, 1 << 20
IDLE = Measured("XFS", 4 * GIB, extents=4, dirty=0)


def pause(found: Measured, *, is_flushed: bool = True, **factors: float) -> float:
    return pausing.predict(found, factors, is_flushed=is_flushed).pause


def test_an_idle_guest_is_paused_for_as_long_as_qemu_needs() -> None:
    assert 0.01 < pause(IDLE) < 0.03
    many = replace(IDLE, extents=200_000)
    assert pause(IDLE) < pause(many) < 0.08
    assert pause(many) == pause(replace(many, extents=1_000_000))


def test_where_the_kernel_does_not_say_what_is_dirty_each_extent_counts() -> None:
    assert pause(replace(IDLE, extents=200_000, dirty=None)) > 1


@pytest.mark.parametrize("system", ["XFS", "btrfs", ""])
def test_what_is_dirty_counts_and_less_of_it_once_it_is_flushed(system: str) -> None:
    busy = replace(IDLE, system=system, dirty=64 * MIB)
    assert pause(busy) > 0.3
    assert pause(IDLE) < pause(busy, is_flushed=False) < pause(busy) / 4


def test_no_more_parts_are_shared_than_there_are() -> None:
    small = Measured("XFS", MIB, extents=1, dirty=MIB)
    assert pause(small) < 0.03


def test_bytes_and_the_work_besides() -> None:
    found = replace(IDLE, dirty=64 * MIB, extents=100_000, others=16 * MIB)
    predicted = pausing.predict(found, {}, is_flushed=False)
    assert 80 * MIB < predicted.written_bytes < 2.5 * 64 * MIB + 24 * MIB
    assert 5 < predicted.outside < 20
    on_btrfs = pausing.predict(replace(found, system="btrfs"), {}, is_flushed=False)
    assert on_btrfs.written_bytes < predicted.written_bytes


def test_earlier_checkpoints_correct_it() -> None:
    factors: dict[str, float] = {}
    for _ in range(20):
        predicted = pausing.predict(IDLE, factors, is_flushed=True).pause
        factors = correction.moved(factors, pausing.KIND, 0.05 / predicted)
    assert pausing.predict(IDLE, factors, is_flushed=True).pause == pytest.approx(0.05, rel=0.02)


def test_a_save_is_better_where_it_is_as_short() -> None:
    found = pausing.predict(replace(IDLE, extents=100_000), {}, is_flushed=False)
    assert not pausing.is_save_better(found, 2.0, resumes=True)
    assert pausing.is_save_better(found, 0.01, resumes=True)
    # One that is left paused waits for all of it.
    assert pausing.is_save_better(found, 2.0, resumes=False)
    assert not pausing.is_save_better(found, 30.0, resumes=False)
