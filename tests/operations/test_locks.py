"""Locks of a state directory that cannot be written, or in which something is in their place."""

from pathlib import Path

import pytest
from mapsave import errors
from mapsave.operations import locks

from tests.kit import storage


def test_a_directory_in_the_place_of_a_lock(tmp_path: Path) -> None:
    with locks.held(tmp_path, "guest 'x'", "x"):
        (path,) = (tmp_path / "locks").iterdir()
    path.unlink()
    path.mkdir()
    with (
        pytest.raises(errors.Refused, match="cannot lock guest 'x'"),
        locks.held(tmp_path, "guest 'x'", "x"),
    ):
        pass


@pytest.mark.root
def test_a_lock_on_a_read_only_file_system(tmp_path: Path) -> None:
    """Recovery must reach a guest whose lock is there."""
    with storage.tmpfs(1 << 20, tmp_path) as place:
        with locks.held(place, "guest 'x'", "x"):
            pass
        with storage.read_only(place):
            with locks.held(place, "guest 'x'", "x"):
                assert locks.is_held(place, "x")
                with pytest.raises(errors.Busy), locks.held(place, "guest 'x'", "x"):
                    pass
            with pytest.raises(errors.Refused), locks.held(place, "guest 'y'", "y"):
                pass
