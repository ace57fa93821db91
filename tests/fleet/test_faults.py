"""Two parts of a fleet fail at the same moment: ``python -m tests.fleet.faults`` has all of it."""

from pathlib import Path

from tests.fleet import world
from tests.fleet.world import Case

CASES = [
    Case("agent.kill", "postgres.copy", "committed"),
    Case("mapsaved.kill", "postgres.kill", "written"),
    Case("scheduler.kill", "postgres.cut", "taken"),
    Case("agent.cut", "mapsaved.cut", "reported"),
    Case("agent.kill", "postgres.copy", "queued"),
]


def test_no_save_is_lost_or_done_twice(tmp_path: Path) -> None:
    """In one fleet, one after another: each finds what the one before has left.

    Of two hosts, one of which nothing happens to.
    """
    most = 0
    with world.running(tmp_path, ("rack1-a", "rack1-b")) as fleet:
        for case in CASES:
            result = world.play(fleet, case)
            assert sum(result.statuses.values()) == 4, case
            # The copy is older than the run only where it is taken before.
            assert result.was_lost == (case == CASES[-1])
            most = max(most, result.most)
    # The storage is used as far as it may be, so that more would have been seen.
    assert most == world.SAVES
    assert fleet.storage.samples > 100
