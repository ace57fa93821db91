"""The image directory is looked at when that is worth it, and by one thread at most."""

import asyncio
import ctypes
import os
import threading
import time
from pathlib import Path

import pytest
from mapsave.operations.image_index import SETTLED
from mapsave.service.metrics.metrics import Metrics
from mapsave.service.metrics.store_usage import StoreUsage

from tests.image import build
from tests.kit import wait
from tests.service.observing import State, key, samples

IN_OPEN = 0x20  # inotify(7)


def counts(usage: object) -> dict[str, int]:
    assert isinstance(usage, dict)
    return {state: count for state, (count, _) in usage.items() if count}


async def test_it_is_not_looked_at_again_while_it_is_fresh(tmp_path: Path) -> None:
    usage = StoreUsage(lambda: tmp_path)
    assert counts(await usage.read()) == {}
    build.Image().built().write(tmp_path / "a")
    assert counts(await usage.read()) == {}


async def test_changes_are_seen(tmp_path: Path) -> None:
    usage = StoreUsage(lambda: tmp_path, fresh=0)
    build.Image().built().write(tmp_path / "a")
    build.Image().built().write(tmp_path / "b")
    assert counts(await usage.read()) == {"saved": 2}
    build.Image(header={"state": build.RESTORED}).built().write(tmp_path / "a")
    assert counts(await usage.read()) == {"saved": 1, "restored": 1}
    (tmp_path / "b").unlink()
    assert counts(await usage.read()) == {"restored": 1}


def openings(watch: int) -> int:
    """Return how often the watched file was opened since the last call, see inotify(7)."""
    try:
        return len(os.read(watch, 4096)) // 16
    except BlockingIOError:
        return 0


async def test_a_header_is_read_again_only_when_the_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or within the tick of the clock in which it was read, when its times would not tell."""
    path = tmp_path / "a"
    build.Image().built().write(path)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) > 0
        usage = StoreUsage(lambda: tmp_path, fresh=0)
        for _ in range(2):
            await usage.read()
            assert openings(watch) == 1
        clock = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: clock() + 2 * SETTLED)
        await usage.read()
        assert openings(watch) == 1
        await usage.read()
        assert openings(watch) == 0
        os.utime(path, (5, 5))
        await usage.read()
        assert openings(watch) == 1
    finally:
        os.close(watch)


async def test_another_directory_is_looked_at_at_once(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    build.Image().built().write(places[1] / "image")
    usage = StoreUsage(lambda: places[0])
    assert counts(await usage.read()) == {}
    places.reverse()
    assert counts(await usage.read()) == {"saved": 1}


class Slow(StoreUsage):
    """One whose file system does not answer until it is let."""

    def __init__(self, directory: Path, *, fresh: float) -> None:
        super().__init__(lambda: directory, fresh=fresh, patience=0.01)
        self.go = threading.Event()
        self.begun = 0

    def _scan(self, directory: Path) -> object:  # type: ignore[override]
        self.begun += 1
        assert self.go.wait(wait.LONG)
        return super()._scan(directory)


async def test_a_file_system_that_hangs_costs_one_thread_and_no_scrape(tmp_path: Path) -> None:
    usage = Slow(tmp_path, fresh=1000)
    try:
        assert await asyncio.gather(*(usage.read() for _ in range(20))) == [None] * 20
        await asyncio.to_thread(wait.until, lambda: usage.begun, what="its thread")
        assert await usage.read() is None
        assert usage.begun == 1
    finally:
        usage.go.set()
    assert usage._task is not None
    await usage._task
    assert counts(await usage.read()) == {}
    assert usage.begun == 1


async def test_images_are_counted_by_state(state: State) -> None:
    header = [{"state": build.RESTORED}, {"state": build.PARTIAL}, {"version": 9}, {}, {}]
    for number, fields in enumerate(header):
        build.Image(header=fields).built().write(state.images / str(number))
    (state.images / "README").write_text("no image")
    (state.images / "directory").mkdir()
    (state.images / "dangling").symlink_to("nowhere")
    found = await samples(Metrics(state.sources()))
    counts = {"restored": 1, "partial": 1, "invalid": 1, "saved": 2}
    for word, count in counts.items():
        assert found[key("images", state=word)] == count
    blocks = [(state.images / name).stat().st_blocks * 512 for name in "34"]
    assert sum(blocks) > 0
    assert found[key("image_store_bytes", state="saved")] == sum(blocks)


async def test_a_directory_that_is_not_there_is_empty(state: State) -> None:
    state.images = state.images / "later"
    found = await samples(Metrics(state.sources()))
    assert found[key("images", state="saved")] == 0
    assert found[key("image_store_bytes", state="saved")] == 0


async def test_nothing_is_said_of_a_directory_that_cannot_be_read(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    good = state.images
    metrics = Metrics(state.sources())
    await samples(metrics)
    state.images = good / "file"
    state.images.write_text("")
    for _ in range(2):
        assert key("images", state="saved") not in await samples(metrics)
    (only,) = caplog.records
    assert "Not a directory" in only.getMessage()
    state.images = good
    assert key("images", state="saved") in await samples(metrics)
