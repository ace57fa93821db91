"""The index of what listings show: never anything else than what the images say by themselves."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from mapsave.image import image, store
from mapsave.image.superblock import State
from mapsave.operations import image_index

from tests.image import build

TRUSTED = frozenset({0, os.geteuid()})
BEGAN = 1_767_400_000  # seconds since the epoch: later than the images say


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory with some images, changed long enough ago for the index."""
    directory = tmp_path / "images"
    directory.mkdir(mode=0o700)
    for number in range(4):
        metadata = json.dumps({"guest": {"name": f"guest{number}"}}).encode()
        build.Image(metadata=metadata).built().write(directory / f"image{number}")
        os.utime(directory / f"image{number}", (BEGAN + number, BEGAN + number))
    (directory / "no image").write_text("notes")
    _settle(directory)
    return directory


def _settle(directory: Path) -> None:
    """Wait until the last change is so long ago that the index takes it for the last one."""
    latest = max(each.lstat().st_ctime for each in directory.iterdir())
    time.sleep(max(0.0, latest + 2.1 - time.time()))


def _look(images: Path, state: Path) -> list[dict[str, Any]]:
    with store.directory(images) as held:
        found = image_index.look(held, state, TRUSTED)
        return [dict(found.line(each, frozenset())) for each in found.listed]


def _read(images: Path, monkeypatch: pytest.MonkeyPatch, state: Path) -> tuple[list[str], Any]:
    """Return the names of the images that were read, and the listing."""
    read: list[str] = []
    real = store.entry

    def noted(held: store.Directory, name: str, *more: Any) -> Any:
        read.append(name)
        return real(held, name, *more)

    with monkeypatch.context() as patched:
        patched.setattr(store, "entry", noted)
        listed = _look(images, state)
    return sorted(read), listed


def test_read_once_and_never_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = _read(images, monkeypatch, tmp_path)
    again, after = _read(images, monkeypatch, tmp_path)
    assert (len(first), again) == (5, [])
    assert after == before == _look(images, Path("/proc/none"))
    assert [each["guest"] for each in after] == ["guest3", "guest2", "guest1", "guest0"]


def _restored(path: Path) -> None:
    with image.opened(path) as opened:
        opened.mark(State.RESTORED)


def _overwritten(path: Path) -> None:
    """Write another image of the same length into the file, and set its time back."""
    stats = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    os.utime(path, ns=(stats.st_atime_ns, stats.st_mtime_ns))


def _replaced(path: Path) -> None:
    new = path.with_name("new")
    build.Image(metadata=b'{"guest": {"name": "another"}}').built().write(new)
    shutil.copystat(path, new)
    new.replace(path)


@pytest.mark.parametrize(
    "change",
    [_restored, _overwritten, _replaced, Path.unlink, lambda path: path.chmod(0o666)],
    ids=["restored", "overwritten", "replaced", "removed", "chmod"],
)
def test_a_change_is_seen(images: Path, tmp_path: Path, change: Any) -> None:
    before = _look(images, tmp_path)
    change(images / "image2")
    after = _look(images, tmp_path)
    assert after != before
    assert after == _look(images, Path("/proc/none"))


def test_what_changes_in_the_moment_it_is_read_is_read_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _restored(images / "image1")
    changed = (images / "image1").stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed + 10**9)  # however busy the machine is
    _look(images, tmp_path)
    assert _read(images, monkeypatch, tmp_path)[0] == ["image1"]


def test_the_latest_image_is_the_one_saved_last_not_the_one_restored_last(tmp_path: Path) -> None:
    for hour, name in enumerate(("old", "new", "running.partial")):
        started = f"2026-01-01T0{hour}:00:00+00:00"
        metadata = json.dumps({"guest": {"name": "web"}, "started": started}).encode()
        build.Image(metadata=metadata).built().write(tmp_path / name)
    build.Image(metadata=b'{"guest": {"name": "db"}}').built().write(tmp_path / "other")
    (tmp_path / "damaged").write_bytes((tmp_path / "new").read_bytes()[:-1])
    _restored(tmp_path / "old")
    for second, name in enumerate(("new", "other", "running.partial", "damaged", "old")):
        os.utime(tmp_path / name, (BEGAN + second, BEGAN + second))  # clocks tick every 4 ms
    with store.directory(tmp_path) as held:
        found = image_index.look(held, Path("/proc/none"), TRUSTED)
    assert found.listed[0].name == "old"
    assert {each.name for each in found.chosen("web")} == {"old", "new", "running.partial"}
    assert [each.name for each in found.chosen("web", latest=True)] == ["new"]
    assert {each.name for each in found.chosen(latest=True)} == {"new", "other"}


@pytest.mark.parametrize("raw", [b"", b"no index", bytes(4096)])
def test_an_index_that_is_none_is_made_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    before = _look(images, tmp_path)
    (index,) = (tmp_path / "listings").iterdir()
    index.write_bytes(raw)
    assert _look(images, tmp_path) == before
    assert _read(images, monkeypatch, tmp_path)[0] == []


def test_other_users_may_be_trusted_the_next_time(images: Path, tmp_path: Path) -> None:
    os.chown(images / "image0", 12345, -1)
    _settle(images)
    assert _look(images, tmp_path)[-1]["writable_by"]
    with store.directory(images) as held:
        found = image_index.look(held, tmp_path, TRUSTED | {12345})
        assert found.line(found.listed[-1], frozenset())["writable_by"] == []


def test_names_that_are_no_text_and_links(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(images / "image0", os.fsencode(images) + b"/\xff")
    (images / "link").symlink_to(images / "image1")
    (images / "dangling").symlink_to(images / "nothing")
    _settle(images)
    before = _look(images, tmp_path)
    read, after = _read(images, monkeypatch, tmp_path)
    assert after == before
    assert "link" in read
    assert {each["name"] for each in after} >= {"link", "\udcff", "image3"}
