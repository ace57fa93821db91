"""From ``NAME.partial`` to ``NAME``: what stands under which name at each moment."""

import asyncio
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.image import abandoned, image, partial_names, superblock, syscalls
from mapsave.image.superblock import State

from tests.image import build, ours

METADATA = {"guest": {"name": "toy"}}


def create(held: int, name: str, *, replace: bool = False, mark: str = "new") -> None:
    with image.creating(held, name, METADATA, stream_offset=build.M) as partial:
        ours.fill(partial)
        partial.commit({"mark": mark}, replace=replace)


def mark_of(path: Path) -> Any:
    with image.opened(path) as opened:
        opened.validate()
        assert opened.block.state is State.SAVED
        return opened.metadata["mark"]


def test_nothing_under_the_name_before_commit(held: int, tmp_path: Path) -> None:
    with image.creating(held, "a", METADATA, stream_offset=build.M) as partial:
        assert os.listdir(held) == ["a.partial"]
        stats = (tmp_path / "a.partial").stat()
        assert stat.S_IMODE(stats.st_mode) == 0o600
        assert stats.st_size < build.M
        assert superblock.read(partial.fd).state is State.PARTIAL
        assert partial.metadata() == METADATA
        ours.fill(partial)
        partial.sync()
        assert partial.validate().used_pages == (5, 1)
        assert os.listdir(held) == ["a.partial"]
        with image.opened(tmp_path / "a.partial") as opened, pytest.raises(errors.PartialImage):
            opened.validate()
        partial.commit({"mark": 1}, replace=False)
        assert os.listdir(held) == ["a"]
    assert os.listdir(held) == ["a"]
    assert mark_of(tmp_path / "a") == 1


def test_stream_that_is_not_whole_is_not_valid(held: int) -> None:
    with image.creating(held, "a", METADATA, stream_offset=build.M) as partial:
        with pytest.raises(errors.TruncatedImage):
            partial.validate()
        ours.fill(partial)
        os.ftruncate(partial.fd, os.fstat(partial.fd).st_size - 1)
        with pytest.raises(errors.TruncatedImage):
            partial.validate()


def test_existing_image_survives_until_it_is_replaced(held: int, tmp_path: Path) -> None:
    create(held, "a", mark="old")
    with image.creating(held, "a", METADATA, stream_offset=build.M) as partial:
        ours.fill(partial)
        assert mark_of(tmp_path / "a") == "old"
        partial.commit({"mark": "new"}, replace=True)
        assert mark_of(tmp_path / "a") == "new"
    assert os.listdir(held) == ["a"]


def test_data_is_marked_saved_before_the_name_appears(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename, fsync = syscalls.rename, os.fsync

    def seen_rename(*args: Any, **kwargs: Any) -> None:
        steps.append(f"rename {superblock.read(partial.fd).state.word}")
        with image.opened(tmp_path / "a.partial") as opened:
            assert opened.block.state is State.PARTIAL, "the name decides"
        rename(*args, **kwargs)

    def seen_fsync(fd: int) -> None:
        steps.append("fsync directory" if fd == held else "fsync file")
        fsync(fd)

    with image.creating(held, "a", METADATA, stream_offset=build.M) as partial:
        ours.fill(partial)
        monkeypatch.setattr(syscalls, "rename", seen_rename)
        monkeypatch.setattr(os, "fsync", seen_fsync)
        partial.commit(METADATA, replace=False)
    # The file twice: "saved" goes into both slots.
    assert steps == ["fsync file", "fsync file", "rename saved", "fsync directory"]


@pytest.mark.parametrize("slot", [0, 1])
def test_committed_image_survives_the_loss_of_either_slot(
    held: int, tmp_path: Path, slot: int
) -> None:
    create(held, "a", mark="kept")
    with open(tmp_path / "a", "r+b") as file:
        file.seek(slot * superblock.SLOT_SIZE)
        file.write(bytes(superblock.SLOT_SIZE))
    with image.opened(tmp_path / "a") as opened:
        assert opened.block.state is superblock.State.SAVED
    assert mark_of(tmp_path / "a") == "kept"


def test_name_that_appears_meanwhile_is_not_replaced(held: int, tmp_path: Path) -> None:
    with (
        pytest.raises(FileExistsError),
        image.creating(held, "a", METADATA, stream_offset=build.M) as partial,
    ):
        ours.fill(partial)
        (tmp_path / "a").write_text("somebody else's")
        partial.commit(METADATA, replace=False)
    assert os.listdir(held) == ["a"]
    assert (tmp_path / "a").read_text() == "somebody else's"


@pytest.mark.parametrize("replace", [False, True])
def test_symbolic_link_as_name_is_not_followed(held: int, tmp_path: Path, replace: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a").symlink_to(victim)
    if replace:
        create(held, "a", replace=True)
        assert mark_of(tmp_path / "a") == "new"
        assert not (tmp_path / "a").is_symlink()
    else:
        with pytest.raises(FileExistsError):
            create(held, "a")
        assert (tmp_path / "a").is_symlink()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.partial").exists()


@pytest.mark.parametrize("target", ["victim", "missing", "/dev/null"])
def test_symbolic_link_as_partial_name_is_not_followed(
    held: int, tmp_path: Path, target: str
) -> None:
    (tmp_path / "victim").write_text("precious")
    link = tmp_path / "a.partial"
    link.symlink_to(target)
    with pytest.raises(errors.Busy):
        create(held, "a")
    with pytest.raises(OSError, match="symbolic links"), image.adopting(held, "a"):
        pass
    assert not abandoned.is_abandoned(held, "a.partial")
    assert link.is_symlink()
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "missing").exists()


NAMES = [
    "x" * 247,
    "x" * 248,
    "x" * 255,
    "é" * 127,
    "x" + "é" * 127,
    "two words",
    "line\nbreak\ttab",
    "quote'\"`$(x)",
    os.fsdecode(b"\xff\xfe"),
    os.fsdecode(b"\xe9" * 255),
    "-rf",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(held: int, tmp_path: Path, name: str) -> None:
    partial = partial_names.partial_name(name)
    assert len(os.fsencode(partial)) <= 255
    assert partial.endswith(".partial") and partial != name
    create(held, name)
    assert os.listdir(held) == [name]
    assert mark_of(tmp_path / name) == "new"


def test_long_names_that_begin_alike_have_their_own_partials() -> None:
    names = ["x" * 250 + end for end in ("a", "b", "c")] + ["é" * 126 + end for end in "ab"]
    assert len({partial_names.partial_name(name) for name in names}) == len(names)


def test_second_saver_of_one_name_is_refused(held: int) -> None:
    with image.creating(held, "a", METADATA, stream_offset=build.M) as first:
        with (
            pytest.raises(errors.Busy, match="another save"),
            image.creating(held, "a", METADATA, stream_offset=build.M),
        ):
            pass
        assert os.listdir(held) == ["a.partial"]
        ours.fill(first)
        first.commit({"mark": 1}, replace=False)
    assert os.listdir(held) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_partial_is_removed_on_every_way_out(held: int, error: type[BaseException]) -> None:
    with pytest.raises(error), image.creating(held, "a", METADATA, stream_offset=build.M):
        raise error
    assert os.listdir(held) == []


def test_partial_is_removed_without_commit(held: int) -> None:
    with image.creating(held, "a", METADATA, stream_offset=build.M):
        pass
    assert os.listdir(held) == []


async def test_partial_is_removed_when_the_task_is_cancelled(held: int) -> None:
    created = asyncio.Event()

    async def save() -> None:
        with image.creating(held, "a", METADATA, stream_offset=build.M):
            created.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(save())
    await created.wait()
    assert os.listdir(held) == ["a.partial"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(held) == []


def test_partial_is_removed_where_the_metadata_do_not_fit(held: int) -> None:
    with (
        pytest.raises(ValueError, match="reserved"),
        image.creating(held, "a", {"x": "x" * build.M}, stream_offset=build.M),
    ):
        pass
    assert os.listdir(held) == []


def test_wrong_stream_offset_makes_no_file(held: int) -> None:
    with (
        pytest.raises(ValueError, match="multiple of 4 KiB"),
        image.creating(held, "a", METADATA, stream_offset=4096),
    ):
        pass
    assert os.listdir(held) == []


def test_removing_what_is_gone_already(held: int, tmp_path: Path) -> None:
    with image.creating(held, "a", METADATA, stream_offset=build.M):
        (tmp_path / "a.partial").unlink()
    assert os.listdir(held) == []


def locked(path: Path) -> bool:
    """Return whether a process holds the file's lock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_partial_is_locked_while_it_has_an_owner(held: int, tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    with image.creating(held, "a", METADATA, stream_offset=build.M) as partial:
        partial.keep()
        assert locked(path)
        assert not abandoned.is_abandoned(held, "a.partial")
        with pytest.raises(errors.Busy, match="being written"), image.adopting(held, "a"):
            pass
    assert not locked(path)
    assert abandoned.is_abandoned(held, "a.partial")


def test_kept_partial_can_be_adopted_and_committed(held: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="lost"),
        image.creating(held, "a", METADATA, stream_offset=build.M) as partial,
    ):
        ours.fill(partial)
        partial.keep()
        raise ValueError("lost")
    with image.adopting(held, "a") as adopted:
        assert locked(tmp_path / "a.partial")
        assert adopted.metadata() == METADATA
        adopted.sync()
        adopted.validate()
        adopted.commit({"mark": "adopted"}, replace=False)
    assert mark_of(tmp_path / "a") == "adopted"


def test_committed_but_not_renamed_can_be_adopted(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(syscalls, "rename", crash)
        with image.creating(held, "a", METADATA, stream_offset=build.M) as partial:
            ours.fill(partial)
            partial.keep()
            partial.commit({"mark": 1}, replace=False)
    assert os.listdir(held) == ["a.partial"]
    assert abandoned.is_abandoned(held, "a.partial")
    with image.adopting(held, "a") as adopted:
        assert not abandoned.is_abandoned(held, "a.partial")
        assert adopted.block.state is State.SAVED
        adopted.validate()
        adopted.commit({"mark": 2}, replace=False)
    assert mark_of(tmp_path / "a") == 2


def test_adopting_what_is_not_there(held: int) -> None:
    with pytest.raises(FileNotFoundError), image.adopting(held, "a"):
        pass


@pytest.mark.parametrize("content", [b"", bytes(3000), bytes(9000)])
def test_partial_without_superblock_is_abandoned_after_a_minute(
    held: int, tmp_path: Path, content: bytes
) -> None:
    # The host failed before the superblock was on disk; or `creating` is just at it.
    path = tmp_path / "a.partial"
    path.write_bytes(content)
    assert not abandoned.is_abandoned(held, "a.partial")
    os.utime(path, (1, 1))
    assert abandoned.is_abandoned(held, "a.partial")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not abandoned.is_abandoned(held, "a.partial")


def test_what_is_no_partial_image_is_not_abandoned(held: int, tmp_path: Path) -> None:
    (tmp_path / "b.partial").write_text("of a download")
    (tmp_path / "c.partial").mkdir()
    os.mkfifo(tmp_path / "d.partial")
    create(held, "e")
    for name in ("b.partial", "c.partial", "d.partial"):
        os.utime(tmp_path / name, (1, 1))
    names = ("b.partial", "c.partial", "d.partial", "e", "missing.partial")
    assert not any(abandoned.is_abandoned(held, name) for name in names)


def test_mark_survives_and_counts(held: int, tmp_path: Path) -> None:
    create(held, "a")
    with image.opened(tmp_path / "a") as opened:
        opened.mark(State.RESTORED)
    with image.opened(tmp_path / "a") as opened:
        assert opened.block.state is State.RESTORED
        assert opened.metadata == {"mark": "new"}
        opened.validate()
        assert opened.allocated <= opened.size + 4096


def test_opening_what_cannot_be_opened(held: int, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("missing")
    for name, error in {
        "missing": errors.ImageNotFound,
        "a\0b": errors.ImageNotFound,
        "x" * 300: errors.ImageNotFound,
        "link": errors.ImageNotFound,
        "directory": errors.NotAnImage,
        "fifo": errors.NotAnImage,
    }.items():
        with pytest.raises(error), image.opened(tmp_path / name):
            pass
