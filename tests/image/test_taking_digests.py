"""Digests that cannot be taken: nothing is read for nothing, nothing waited for without end."""

import asyncio
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mapsave import blocking, errors
from mapsave.image import data_digests, descriptors, image
from mapsave.migration import stall
from mapsave.migration.progress import Phases
from mapsave.operations import digesting, inspect, reading_first, warming
from mapsave.service.digests import DigestTaker

from tests.image import build
from tests.image.filled import fill
from tests.kit import wait

ROOM = data_digests.room(8 * build.MIB)
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}


def pending(held: int, directory: Path, name: str = "a") -> Path:
    """Make an image whose digests are still to be taken."""
    with image.creating(held, name, {}, stream_offset=build.M, digest_room=ROOM) as partial:
        fill(partial, 1)
        partial.commit({}, replace=False)
    return directory / name


@contextlib.contextmanager
def without_room(held: int) -> Iterator[image.Partial]:
    """Yield an image, nearly all holes, whose digests are more than it has room for."""
    blocks = [build.Block("pc.ram", 300 * build.MIB, (1,))]
    with image.creating(held, "a", {}, stream_offset=build.M, digest_room=4096) as partial:
        made = build.Image(offset=partial.block.stream_offset, blocks=blocks).built()
        os.ftruncate(partial.fd, made.size)
        for at, data in made.pieces:
            if at >= partial.block.stream_offset:
                os.pwrite(partial.fd, data, at)
        yield partial
        partial.commit({}, replace=False)


def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> int:
        raise AssertionError("data is read")

    monkeypatch.setattr(os, "preadv", read)


@contextlib.asynccontextmanager
async def taking(images: Path | None) -> AsyncIterator[tuple[DigestTaker, asyncio.Queue[str]]]:
    """Take digests; yield who does, and the outcome for each image."""
    outcomes: asyncio.Queue[str] = asyncio.Queue()
    taker = DigestTaker(lambda: images, lambda: False, lambda how, _: outcomes.put_nowait(how))
    running = asyncio.create_task(taker.run())
    try:
        async with asyncio.timeout(wait.LONG):
            yield taker, outcomes
    finally:
        running.cancel()


def change(path: Path) -> None:
    """Change the inode of a file, so that its time shows it."""
    before = path.stat().st_ctime_ns

    def is_changed() -> bool:
        path.chmod(0o640)
        return path.stat().st_ctime_ns != before

    wait.until(is_changed, what="a later time")


def test_too_little_room_is_none(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    with without_room(held):
        pass
    no_reads(monkeypatch)
    with image.opened(path) as opened:
        assert opened.block.digests == "none"
        assert not digesting.add(opened, digesting.Watch())
    found = inspect.verify(str(path), watch=digesting.Watch(), add=True)
    assert "too little room" in str(found["warnings"])


def test_a_save_whose_digests_do_not_fit_takes_none(held: int) -> None:
    with without_room(held) as partial:
        partial.take_digests(data_digests.ignore)
    assert partial.block.digests == "none"


def test_a_file_that_cannot_be_written_is_not_read(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pending(held, tmp_path)
    real = descriptors.reopened

    def read_only(fd: int, flags: int) -> AbstractContextManager[int]:
        if flags & os.O_WRONLY:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(fd, flags)

    monkeypatch.setattr(descriptors, "reopened", read_only)
    no_reads(monkeypatch)
    with image.opened(path) as opened, pytest.raises(errors.NotDigested, match="Read-only"):
        digesting.add(opened, digesting.Watch())


def test_an_image_that_is_removed_is_let_go_of(held: int, tmp_path: Path) -> None:
    """While it is paused too."""
    path = pending(held, tmp_path)
    watch = digesting.Watch()
    watch.is_paused = True
    with image.opened(path) as opened:
        path.unlink()
        with pytest.raises(errors.ImageNotFound, match="removed"):
            digesting.add(opened, watch)


async def test_what_has_failed_is_not_read_again_until_it_changes(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = pending(held, tmp_path, "bad"), pending(held, tmp_path, "good")
    real, failed = os.preadv, os.stat(bad).st_ino

    def failing(fd: int, buffers: list[memoryview], at: int) -> int:
        if os.fstat(fd).st_ino == failed:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", failing)
    async with taking(None) as (taker, outcomes):
        taker.saved(str(bad))
        assert await outcomes.get() == "failed"
        taker.saved(str(bad))
        taker.saved(str(good))
        assert await outcomes.get() == "done"
        change(bad)
        failed = -1
        taker.saved(str(bad))
        assert await outcomes.get() == "done"


async def test_without_memory_the_next_is_taken(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pending(held, tmp_path)

    def take(*_: object) -> None:
        raise MemoryError

    async with taking(tmp_path) as (taker, outcomes):
        with monkeypatch.context() as patched:
            patched.setattr(data_digests, "take", take)
            assert await outcomes.get() == "failed"
        change(path)
        taker.saved(str(path))
        assert await outcomes.get() == "done"


async def test_a_reading_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while it is paused."""
    monkeypatch.setattr(stall, "limit", lambda _: 0.01)
    may_end, looks = threading.Event(), iter((True, True, True))
    try:
        with pytest.raises(blocking.Hangs, match="hangs"):
            await digesting.watched(
                lambda _: may_end.wait(wait.LONG), Phases(), pauses=lambda: next(looks, False)
            )
        assert next(looks, None) is None
    finally:
        may_end.set()


async def test_data_that_hangs_is_an_unreadable_image(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pending(held, tmp_path)
    with image.opened(path) as opened:
        digesting.add(opened, digesting.Watch())
    may_end, real = threading.Event(), os.preadv

    def hanging(fd: int, buffers: list[memoryview], at: int) -> int:
        may_end.wait(wait.LONG)
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", hanging)
    monkeypatch.setattr(stall, "limit", lambda _: 1.0)
    try:
        with (
            image.opened(path) as opened,
            pytest.raises(errors.UnreadableImage, match="hangs"),
        ):
            await reading_first.Verification(tmp_path, opened, Phases(), is_wanted=True).verify()
    finally:
        may_end.set()


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """What keeps threads from being begun, as their limit does."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    @contextlib.contextmanager
    def without() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            yield

    return without


async def test_without_a_thread_nothing_is_read_in_the_event_loop(
    held: int, tmp_path: Path, no_thread: Callable[[], AbstractContextManager[None]]
) -> None:
    path = pending(held, tmp_path)
    done: list[digesting.Watch] = []
    reading = warming.Warming(tmp_path)
    with image.opened(path) as opened, no_thread():
        with pytest.raises(blocking.NoThread):
            await digesting.watched(done.append, Phases())
        stream = opened.validate().stream
        reading.begin(opened, stream, warming.Wanted("all", None))
        assert blocking.begin(int, "3").result() == 3
    found = reading.so_far()
    assert found is not None
    assert (found["bytes"], found["why_not"]) == (0, "no thread can be had now for what takes long")
    assert not done


@pytest.mark.skipif(os.uname().machine not in _IOPRIO_GET, reason="another number of the call")
def test_digests_are_written_at_the_priority_of_all_else(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the reading is at idle priority: a restore may wait for the writing."""
    path = pending(held, tmp_path)
    call = ctypes.CDLL(None).syscall
    number = _IOPRIO_GET[os.uname().machine]
    seen: dict[str, int] = {}
    take, add = data_digests.take, image.Image.add_digests

    def taking(fd: int, begin: int, end: int, note: Callable[[int], None]) -> data_digests.Digests:
        seen["read"] = call(number, 1, 0) >> 13
        return take(fd, begin, end, note)

    def adding(self: image.Image, taken: data_digests.Digests) -> None:
        seen["written"] = call(number, 1, 0) >> 13
        add(self, taken)

    monkeypatch.setattr(data_digests, "take", taking)
    monkeypatch.setattr(image.Image, "add_digests", adding)
    before = call(number, 1, 0) >> 13
    with image.opened(path) as opened:
        assert digesting.add(opened, digesting.Watch(), when_idle=True)
    assert seen == {"read": 3, "written": before}
