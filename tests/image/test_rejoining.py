"""Memory that is written afresh, and whose file shares that: the same contents in few extents."""

import errno
import mmap
import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mapsave.image import extents, holes, reflink

from tests.kit import files, patterns, storage
from tests.kit.storage import MIB

pytestmark = pytest.mark.root

KINDS: list[storage.Kind] = ["xfs", "btrfs"]
LENGTH, PAGE = 16 * MIB, 4096


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that reflinks."""
    with storage.loop_filesystem(request.param, 512 * MIB, tmp_path) as mounted:
        yield mounted


class Scattered:
    """A file in very many extents, of which there is a mirror, and an image to be."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.path = place / "ram"
        patterns.write(self.path, LENGTH, patterns.dense)
        kind = os.O_RDWR | os.O_CREAT
        self.source = stack.enter_context(files.opened(self.path, os.O_RDWR))
        target = stack.enter_context(files.opened(place / "mirror", kind))
        self.image = stack.enter_context(files.opened(place / "image", kind))
        self.mirror = reflink.Mirror(self.source, 0, LENGTH, target)
        self.mirror.update()
        for page in range(0, LENGTH // PAGE, 2):
            os.pwrite(self.source, os.urandom(100), page * PAGE)
        self.mirror.update()
        assert self.count() > 2000

    def count(self) -> int:
        return extents.count(self.source, 0, LENGTH)


@pytest.fixture
def scattered(place: Path) -> Iterator[Scattered]:
    with ExitStack() as stack:
        yield Scattered(place, stack)


def test_it_is_in_few_extents_and_has_the_same_contents(scattered: Scattered) -> None:
    before = scattered.path.read_bytes()
    scattered.mirror.copy_to(scattered.image, MIB)
    assert os.pread(scattered.image, LENGTH, MIB) == before
    assert extents.shared_bytes(scattered.image, LENGTH + MIB) == 0
    after = scattered.mirror.rejoin(scattered.image, MIB)
    assert after == scattered.count() < 200
    assert scattered.path.read_bytes() == os.pread(scattered.image, LENGTH, MIB) == before
    assert extents.shared_bytes(scattered.image, LENGTH + MIB) == LENGTH


def test_holes_stay(place: Path) -> None:
    with ExitStack() as stack:
        path = place / "ram"
        source = stack.enter_context(files.opened(path, os.O_RDWR | os.O_CREAT))
        os.ftruncate(source, LENGTH)
        for start in (0, 5 * MIB, LENGTH - PAGE):
            os.pwrite(source, os.urandom(PAGE), start)
        target = stack.enter_context(files.opened(place / "mirror", os.O_RDWR | os.O_CREAT))
        image = stack.enter_context(files.opened(place / "image", os.O_RDWR | os.O_CREAT))
        mirror = reflink.Mirror(source, 0, LENGTH, target)
        mirror.update()
        mirror.copy_to(image, MIB)
        mirror.rejoin(image, MIB)
        there = [(start + MIB, end + MIB) for start, end in holes.extents(source, 0, LENGTH)]
        assert len(there) == 3
        assert list(holes.extents(image, 0, LENGTH + MIB)) == there
        assert os.pread(image, LENGTH, MIB).ljust(LENGTH, b"\0") == path.read_bytes()


def test_what_has_changed_since_is_left_alone(scattered: Scattered) -> None:
    scattered.mirror.copy_to(scattered.image, MIB)
    copied = os.pread(scattered.image, LENGTH, MIB)
    for page in range(0, LENGTH // PAGE, 97):
        os.pwrite(scattered.source, b"changed since", page * PAGE + 50)
    changed = scattered.path.read_bytes()
    scattered.mirror.rejoin(scattered.image, MIB)
    assert scattered.path.read_bytes() == changed
    assert os.pread(scattered.image, LENGTH, MIB) == copied
    shared = extents.shared_bytes(scattered.image, LENGTH + MIB)
    assert shared is not None and shared > LENGTH // 4


def test_whoever_writes_to_it_meanwhile_loses_nothing(scattered: Scattered) -> None:
    """As a guest does, through a mapping: each page has what was written to it last."""
    scattered.mirror.copy_to(scattered.image, MIB)
    copied = os.pread(scattered.image, LENGTH, MIB)
    stop, written = threading.Event(), dict[int, int]()
    generator = random.Random(7)

    def write() -> None:
        with mmap.mmap(scattered.source, LENGTH) as mapped:
            while not stop.is_set():
                page = generator.randrange(LENGTH // PAGE)
                written[page] = (written.get(page, 0) + 1) % 256
                mapped[page * PAGE + 9] = written[page]

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            scattered.mirror.rejoin(scattered.image, MIB)
    finally:
        stop.set()
        thread.join()
    found = scattered.path.read_bytes()
    assert written
    expected = bytearray(copied)
    for page, value in written.items():
        expected[page * PAGE + 9] = value
    assert found == expected
    assert os.pread(scattered.image, LENGTH, MIB) == copied


def test_it_ends_where_it_is_stopped(scattered: Scattered) -> None:
    scattered.mirror.stop()
    for work in (scattered.mirror.copy_to, scattered.mirror.rejoin):
        with pytest.raises(OSError) as stopped:
            work(scattered.image, MIB)
        # Of a copy with nothing in it there is nothing to compare.
        assert stopped.value.errno == errno.ECANCELED
        patterns_end = os.fstat(scattered.image).st_size
        if not patterns_end:
            os.pwrite(scattered.image, b"some", MIB)
