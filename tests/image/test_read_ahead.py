"""What is read ahead is just what was asked for, at the rate and for the time that it may take."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.image.read_ahead import Limits, Reader

from tests.kit import cache, need, wait

PAGE = cache.PAGE
MIB = 1 << 20
FOREVER = 1e18


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 32 MiB."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(MIB) * 32)
    return path


@contextlib.contextmanager
def reading(path: Path, rate: int | None, until: float = FOREVER) -> Iterator[Reader]:
    with path.open("rb", buffering=0) as file:
        yield Reader(file.fileno(), Limits(rate, until), threading.Event())


def test_just_the_parts(path: Path) -> None:
    """A host that is short of memory drops what was read at once: it is tried again then."""
    need.skip_if(cache.unavailable(path))
    parts = [(0, PAGE), (5 * PAGE, 7 * PAGE), (MIB, 12 * MIB + PAGE), (31 * MIB, 32 * MIB)]
    wanted = [False] * (path.stat().st_size // PAGE)
    for start, end in parts:
        wanted[start // PAGE : end // PAGE] = [True] * ((end - start) // PAGE)

    def is_just_that() -> bool:
        cache.evict(path)
        with reading(path, None) as reader:
            assert reader.read(parts)
            assert reader.done_bytes == sum(end - start for start, end in parts)
        return cache.resident(path) == wanted

    wait.until(is_just_that, what="just these pages in the page cache")


def test_not_faster_than_it_may(path: Path) -> None:
    began = time.monotonic()
    with reading(path, 16 * MIB) as reader:
        assert reader.read([(0, 8 * MIB)])
    # What is under way at the end, a tenth of a second's, is not waited for.
    assert time.monotonic() - began > 0.35


def test_no_longer_than_it_may(path: Path) -> None:
    with reading(path, MIB, time.monotonic() + 0.1) as reader:
        assert not reader.read([(0, 32 * MIB)])
    assert reader.done_bytes < 16 * MIB


def test_it_can_be_stopped(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        stop = threading.Event()
        reader = Reader(file.fileno(), Limits(1, FOREVER), stop)  # for a year
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        assert not reader.read([(0, 32 * MIB)])
        timer.join()


def test_what_is_not_there_is_an_error(path: Path) -> None:
    with reading(path, None) as reader, pytest.raises(OSError, match="shorter"):
        reader.read([(0, 40 * MIB)])
    assert reader.done_bytes == 32 * MIB
