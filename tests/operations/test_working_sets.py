"""A working set that is damaged, old or a stranger's is not used, and fails nothing."""

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from bitarray import bitarray
from mapsave.image import working_set
from mapsave.image.working_set import WorkingSet
from mapsave.operations import working_sets

UUID = uuid.UUID(int=7)
KNOWN = WorkingSet(str(UUID), "save", 1.0, 4096, {"ram": bitarray("0110", endian="little")})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with the working set of one image."""
    assert working_sets.record(tmp_path, KNOWN)
    return tmp_path


def test_it_is_found_by_the_images_uuid(state: Path) -> None:
    assert working_sets.read(state, UUID) == KNOWN
    assert working_sets.read(state, uuid.UUID(int=8)) is None
    assert working_sets.path(state, KNOWN.uuid).stat().st_mode & 0o077 == 0
    working_sets.forget(state, UUID)
    working_sets.forget(state, UUID)
    assert working_sets.read(state, UUID) is None


def test_a_save_leaves_what_was_learned(state: Path) -> None:
    learned = dataclasses.replace(KNOWN, by="learn")
    assert working_sets.record(state, learned)
    assert not working_sets.record(state, KNOWN)
    assert working_sets.read(state, UUID) == learned


def _of_another(path: Path) -> None:
    path.write_bytes(dataclasses.replace(KNOWN, uuid=str(uuid.UUID(int=8))).encoded())


def _writable(path: Path) -> None:
    path.chmod(0o666)


def _a_link(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


def _a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _too_long(path: Path) -> None:
    os.truncate(path, working_set.MOST_BYTES + 1)


@pytest.mark.parametrize(
    "spoil", [_of_another, _writable, _a_link, _a_fifo, _a_directory, _too_long]
)
def test_what_is_not_right_is_not_used(
    state: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(working_sets.path(state, KNOWN.uuid))
    assert working_sets.read(state, UUID) is None
    assert str(UUID) in caplog.text


def test_old_ones_make_room(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_sets, "_MOST", 4)
    os.utime(working_sets.path(state, KNOWN.uuid), (1, 1))
    for number in range(8, 12):
        working_sets.record(state, dataclasses.replace(KNOWN, uuid=str(uuid.UUID(int=number))))
    assert working_sets.read(state, UUID) is None
    assert working_sets.read(state, uuid.UUID(int=11)) is not None
    assert len(list((state / "working-sets").iterdir())) <= 4
