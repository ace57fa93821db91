"""A directory of images: what is listed, and which names are allowed."""

import os
import socket
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import image, store

from tests.image import build


def put(path: Path, age: int, made: build.Image | None = None) -> None:
    """Write an image that is ``age`` seconds old."""
    (made or build.Image()).built().write(path)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


def listed(path: Path) -> list[tuple[str, str]]:
    with store.directory(path) as held:
        return [(entry.name, entry.state) for entry in store.entries(held)]


def test_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        put(tmp_path / name, age)
    assert listed(tmp_path) == [("c", "saved"), ("a", "saved"), ("b", "saved")]


def test_each_state_is_shown(tmp_path: Path) -> None:
    put(tmp_path / "1", 1)
    put(tmp_path / "2", 2, build.Image(header={"state": build.RESTORED}))
    put(tmp_path / "3.partial", 3, build.Image(header={"state": build.PARTIAL}))
    put(tmp_path / "4", 4, build.Image(header={"version": 9}))
    put(tmp_path / "5", 5, build.Image(header={"file_length": 1 << 40}))
    with (tmp_path / "1").open("r+b") as file:
        file.seek(3)  # the first slot is no more; there is no second
        file.write(b"x")
    put(tmp_path / "6", 6)
    with (tmp_path / "6").open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    os.utime(tmp_path / "6", (6, 6))
    assert listed(tmp_path) == [
        ("2", "restored"),
        ("3.partial", "partial"),
        ("4", "invalid"),
        ("5", "invalid"),
        ("6", "invalid"),
    ]


def test_entry_says_what_is_known(tmp_path: Path) -> None:
    put(tmp_path / "good", 0, build.Image(metadata=b'{"guest": {"name": "web01"}}'))
    put(tmp_path / "short", 1)
    os.truncate(tmp_path / "short", 1 << 20)
    os.utime(tmp_path / "short", (5, 5))
    with store.directory(tmp_path) as held:
        good, short = store.entries(held)
    assert good.guest == "web01" and good.error is None
    assert good.path == str(tmp_path / "good")
    stats = (tmp_path / "good").stat()
    assert (good.file_bytes, good.allocated_bytes) == (stats.st_size, stats.st_blocks * 512)
    assert isinstance(short.error, errors.TruncatedImage) and short.guest is None
    assert short.file_bytes == 1 << 20


@pytest.mark.parametrize("metadata", [b"{}", b'{"guest": []}', b'{"guest": null}', b"[1]"])
def test_strange_metadata_are_no_obstacle(tmp_path: Path, metadata: bytes) -> None:
    put(tmp_path / "a", 0, build.Image(metadata=metadata))
    with store.directory(tmp_path) as held:
        (entry,) = store.entries(held)
    assert entry.guest is None


def test_other_files_are_left_out_and_hold_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("MAPSAV")
    (tmp_path / "empty").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        put(tmp_path / "image", 0)
        assert listed(tmp_path) == [("image", "saved")]


@pytest.mark.parametrize(
    "name", ["x" * 255, "line\nbreak", os.fsdecode(b"\xff\xfe"), "-", " ", "'\""], ids=ascii
)
def test_names_allowed(tmp_path: Path, name: str) -> None:
    store.check_name(name)
    put(tmp_path / name, 0)
    assert listed(tmp_path) == [(name, "saved")]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\0", "x" * 256, "é" * 128, "a.partial"], ids=ascii
)
def test_names_refused(name: str) -> None:
    with pytest.raises(errors.UsageError):
        store.check_name(name)


def test_image_that_goes_while_we_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", 0, build.Image(header={"version": 9}))
    put(tmp_path / "b", 0)
    real = image.superblock.read

    def read(fd: int) -> object:
        if os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "a"):
            (tmp_path / "a").unlink()
        return real(fd)

    monkeypatch.setattr(image.superblock, "read", read)
    assert listed(tmp_path) == [("b", "saved")]


def test_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "images"
    with store.directory(path, create=True) as held:
        assert held.path == str(path)
        assert os.fstat(held.fd).st_mode & 0o777 == 0o700
        assert held.free_bytes() > 0


@pytest.mark.parametrize("name", ["missing", "file", "a\0b"])
def test_directory_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.BadDirectory), store.directory(tmp_path / name):
        pass


def test_exists_sees_every_kind(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    with store.directory(tmp_path) as held:
        assert held.exists("file") and held.exists("dangling")
        assert not held.exists("missing")
