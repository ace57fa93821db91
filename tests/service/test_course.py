"""Samples of an operation's progress: few, and kept in the history."""

import itertools
from pathlib import Path

from mapsave.history import history
from mapsave.history.rows import Sample
from mapsave.service import course
from mapsave.service.course import Course

from tests.history.records import record


def test_what_is_soon_over_is_kept_whole() -> None:
    made = Course()
    samples = [Sample(float(at), "write", at, 100) for at in range(100)]
    for each in samples:
        made.note(each)
        made.note(each._replace(time=each.time + 0.5))  # nothing new
    assert made.samples == samples


def test_a_long_save_is_evenly_sampled_from_its_begin_to_its_end() -> None:
    """Four hours, four reports a second, between short phases."""
    made = Course()
    made.note(Sample(0.0, "prepare", 0, 0))
    for at in range(4 * 4 * 3600):
        made.note(Sample(1 + at / 4, "write", at, 1 << 40))
        assert len(made.samples) <= course.MOST
    made.note(Sample(14402.0, "sync", 0, 0))
    made.note(Sample(14403.0, "commit", 0, 0))
    phases = [each.phase for each in made.samples]
    assert [phases[0], *phases[-2:]] == ["prepare", "sync", "commit"]
    written = made.samples[1:-2]
    assert (written[0].done_bytes, written[-1].done_bytes) == (0, 4 * 4 * 3600 - 1)
    gaps = [b.time - a.time for a, b in itertools.pairwise(written)]
    assert len(written) > course.MOST // 4
    assert max(gaps) <= 4 * sorted(gaps)[len(gaps) // 2]


def test_thousands_of_phases_are_thinned_too() -> None:
    made = Course()
    for at in range(5000):
        made.note(Sample(float(at), f"guest {at}", 0, 0))
        assert len(made.samples) <= course.MOST
    assert len(made.samples) > course.MOST // 4


async def test_the_history_keeps_them_with_their_operation(tmp_path: Path) -> None:
    samples = [Sample(1.5, "prepare", 0, 0), Sample(2.5, "wríte", 1 << 50, 1 << 60)]
    async with history.opened(tmp_path / "journal.db") as opened:
        one, other = record(), record()
        await opened.begin(one)
        await opened.begin(other)
        opened.note_course(one.id, samples)
        await opened.end(one.id, "done", ended=10.0)
        await opened.end(other.id, "done", ended=20.0)
        assert await opened.course(one.id) == samples
        assert await opened.course(other.id) == []
        assert await opened.prune(15.0) == 1
        assert await opened.course(one.id) == []
