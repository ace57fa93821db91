"""Locks of a state directory that cannot be written, or in which something is in their place.

And its files, which several threads write.
"""

import os
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


def test_whether_a_lock_is_shared(tmp_path: Path) -> None:
    """Who wants it alone must wait for those who share it; others need not."""
    with locks.held(tmp_path, "image 'x'", "x", shared=True):
        assert not locks.is_held(tmp_path, "x")
        assert locks.is_held(tmp_path, "x", exclusive=True)
    assert not locks.is_held(tmp_path, "x", exclusive=True)


def test_two_threads_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first brings its own to storage: each is whole."""
    path, fsync = tmp_path / "file", os.fsync

    def meanwhile(fd: int) -> None:
        fsync(fd)
        monkeypatch.setattr(os, "fsync", fsync)
        locks.replace(path, "second")
        assert path.read_text() == "second"

    monkeypatch.setattr(os, "fsync", meanwhile)
    locks.replace(path, "first")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "first"


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        locks.replace(tmp_path / "file", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_two_threads_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other has removed already is gone, which is all that was wanted."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).touch()
    unlink = os.unlink

    def after_another(path: str) -> None:
        unlink(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", after_another)
    locks.make_room(tmp_path, 4)
    assert len(list(tmp_path.iterdir())) == 2
