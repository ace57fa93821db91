"""An image that is composed of a legacy stream and a reflink of the RAM file; stock QEMU loads it.

All by bare monitor commands, as ``mapsave checkpoint`` does it.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import (
    bitmaps,
    composing,
    legacy_stream,
    mapped_ram,
    reflink,
    syscalls,
    validation,
)

from tests.image import build, build_legacy
from tests.image.build_legacy import PAGE, Legacy, contents
from tests.kit import files, memory, patterns, qemu, ram, raw, storage
from tests.kit.storage import MIB

pytestmark = pytest.mark.root

KINDS: list[storage.Kind] = ["xfs", "btrfs"]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that reflinks."""
    with storage.loop_filesystem(request.param, 512 * MIB, tmp_path) as mounted:
        yield mounted


def _legacy(guest: qemu.Qemu, path: Path) -> None:
    """Have QEMU write its legacy stream without shared memory."""
    on = [{"capability": "x-ignore-shared", "state": True}]
    guest.control.execute("migrate-set-capabilities", capabilities=on)
    guest.control.execute("migrate-set-parameters", max_bandwidth=0)
    with raw.handed_over(guest, path, os.O_WRONLY | os.O_CREAT, direct=False):
        guest.control.execute("migrate", uri=f"file:/dev/fdset/{raw.FDSET}")
        guest.wait_migration("completed")
        guest.wait_status("postmigrate")


def _composed(image: Path, legacy: Path, file: Path, name: str) -> composing.Composed:
    with (
        files.opened(image, os.O_RDWR | os.O_CREAT) as fd,
        files.opened(legacy) as stream,
        files.opened(file) as copy,
    ):
        read = legacy_stream.read(stream, legacy.stat().st_size, "x86_64")
        found = composing.compose(fd, MIB, stream, read, {name: copy})
        validation.validate_written(fd, MIB, image.stat().st_size)
        return found


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
def test_stock_qemu_loads_it(place: Path, tmp_path: Path, machine: str) -> None:
    file, legacy, image = place / "ram", place / "legacy", place / "image"
    shared = memory.from_file(file, "64M", shared=True)
    with qemu.running(*shared, machine=machine, ram=patterns.sparse) as source:
        before = source.snapshot_ram(tmp_path / "before")
        _legacy(source, legacy)
        done = _composed(image, legacy, file, "m")
        ram.assert_same(before, source.ram)
    assert 8 * MIB < done.shared_bytes <= 64 * MIB
    assert done.written_bytes < 2 * MIB
    with files.opened(image) as fd:
        stream = mapped_ram.read(fd, MIB, image.stat().st_size)
        (main,) = (block for block in stream.blocks if block.name == "m")
        assert bitmaps.used_pages(fd, main) * PAGE == done.shared_bytes
    assert stream.capabilities == ("mapped-ram",)
    zeroed = memory.zeroed("64M")
    for direct_io in (True, False):
        with qemu.running(*zeroed, machine=machine, incoming=True) as destination:
            raw.restore(destination, image, direct_io=direct_io)
            ram.assert_same(before, destination.ram)


def test_small_blocks_with_contents(place: Path, tmp_path: Path) -> None:
    """A DIMM that is no file, and video memory, are in the stream; a shared DIMM is not."""
    file, legacy, image = place / "ram", place / "legacy", place / "image"
    arguments = [*memory.from_file(file, "32M", shared=True), *memory.dimm("16M"), "-vga", "std"]
    with qemu.running(*arguments, machine="q35", memory="32M", ram=patterns.dense) as source:
        before = source.snapshot_ram(tmp_path / "before")
        _legacy(source, legacy)
        done = _composed(image, legacy, file, "m")
    assert done.written_bytes > 24 * MIB
    plain = [*memory.zeroed("32M"), *memory.dimm("16M"), "-vga", "std"]
    with qemu.running(*plain, machine="q35", memory="32M", incoming=True) as destination:
        raw.restore(destination, image)
        ram.assert_same(before, destination.ram)


def test_until_it_is_whole_no_one_takes_it_for_an_image(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Legacy().built()
    with (
        build_legacy.opened(data) as legacy,
        files.opened(place / "image", os.O_RDWR | os.O_CREAT) as fd,
        files.opened(place / "copy", os.O_RDWR | os.O_CREAT) as copy,
    ):
        os.truncate(copy, MIB)
        stream = legacy_stream.read(legacy, len(data), "x86_64")

        def fails(*_: object) -> int:
            raise OSError("the disk")

        with monkeypatch.context() as patched, pytest.raises(OSError, match="the disk"):
            patched.setattr(composing, "_copy", fails)
            composing.compose(fd, build.M, legacy, stream, {"shared": copy})
        with pytest.raises(errors.NotAnImage):
            mapped_ram.read(fd, build.M, os.fstat(fd).st_size)
        composing.compose(fd, build.M, legacy, stream, {"shared": copy})
        found = mapped_ram.read(fd, build.M, os.fstat(fd).st_size)
        used = [bitmaps.used_pages(fd, block) for block in found.blocks]
        assert used == [0, 2, 0]
        assert os.pread(fd, PAGE, found.blocks[1].pages_offset + 2 * PAGE) == contents(12)


@pytest.mark.parametrize(
    ("copies", "problem"),
    [
        ({}, "'shared' is not in the stream"),
        ({"shared": MIB, "small": 4 * PAGE}, "'small' is in the stream, though it is shared"),
        ({"shared": 2 * MIB}, "has 1048576 bytes in the stream, but 2097152 in its file"),
        ({"shared": MIB, "unknown": MIB}, "'unknown' is not in the stream"),
    ],
)
def test_blocks_that_do_not_fit(tmp_path: Path, copies: dict[str, int], problem: str) -> None:
    data = Legacy().built()
    with build_legacy.opened(data) as legacy, files.in_memory() as fd:
        opened = {}
        for name, length in copies.items():
            opened[name] = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
            os.truncate(opened[name], length)
        try:
            with pytest.raises(errors.InvalidImage, match=problem):
                stream = legacy_stream.read(legacy, len(data), "x86_64")
                composing.compose(fd, build.M, legacy, stream, opened)
        finally:
            for each in opened.values():
                os.close(each)
        assert os.fstat(fd).st_size == 0


def _mirror(source: int, length: int, target: int) -> reflink.Mirror:
    return reflink.Mirror(source, 0, length, target)


def test_a_mirror_follows_what_is_written(place: Path) -> None:
    """Written, written again before and after an update, dug and filled: equal after each."""
    path, length = place / "ram", 32 * MIB
    patterns.write(path, length, patterns.sparse)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
    ):
        mirror = _mirror(source, length, target)
        assert mirror.update() > 0
        same = lambda: path.read_bytes() == (place / "mirror").read_bytes()  # noqa: E731
        assert same()
        assert mirror.update() == 0
        for number in range(6):
            for page in range(number, 8000, 411 + number):
                os.pwrite(source, bytes([number + 1]) * 2000, page * PAGE + 7)
            os.fdatasync(source)
            hole = (number + 2) * 3 * MIB
            os.pwrite(source, b"in its place", 5 * PAGE)
            syscalls.punch_hole(source, hole, MIB + 3 * PAGE)
            assert mirror.update() > 0
            assert same(), number
            mirror.update()  # whose extents are reported in other pieces once they are shared
            assert mirror.update() == 0
        syscalls.punch_hole(source, 0, length)
        mirror.update()
        assert os.lseek(target, 0, os.SEEK_HOLE) == 0
        assert same()


def test_a_mirror_is_not_misled_by_others_who_share(place: Path) -> None:
    """Another copy is made between two updates: what has changed before it is shared as well."""
    path, length = place / "ram", 4 * MIB
    patterns.write(path, length, patterns.dense)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
        files.opened(place / "other", os.O_RDWR | os.O_CREAT) as other,
    ):
        mirror = _mirror(source, length, target)
        mirror.update()
        os.pwrite(source, b"changed", 100 * PAGE)
        reflink.share(source, 0, length, other, 0)
        mirror.update()
        assert os.pread(target, 7, 100 * PAGE) == b"changed"


def test_a_mirror_of_a_part(place: Path) -> None:
    path = place / "ram"
    patterns.write(path, 8 * MIB, patterns.dense)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
    ):
        mirror = reflink.Mirror(source, 2 * MIB, 3 * MIB, target)
        assert mirror.update() > 0
        os.pwrite(source, b"outside", 6 * MIB)
        os.pwrite(source, b"inside", 3 * MIB)
        mirror.update()
        assert (place / "mirror").read_bytes() == path.read_bytes()[2 * MIB : 5 * MIB]


def test_a_mirror_catches_up_with_what_is_dirty(place: Path) -> None:
    path, length = place / "ram", 32 * MIB
    patterns.write(path, length, patterns.dense)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
    ):
        mirror = _mirror(source, length, target)
        mirror.update()
        for number in range(5):
            # Changed before it is followed, after that, and both.
            for page in range(number, 8000, 301 + number):
                os.pwrite(source, bytes([number + 1]) * 3000, page * PAGE + 100)
            mirror.catch_up()
            for page in range(number + 7, 8000, 401 + number):
                os.pwrite(source, bytes([number + 100]) * 3000, page * PAGE + 100)
            assert mirror.catch_up() is not None
            assert path.read_bytes() == (place / "mirror").read_bytes(), number
            assert mirror.is_certain()


@pytest.mark.parametrize("how", ["written", "dug", "both"])
def test_what_is_on_the_disk_already_is_uncertain(place: Path, how: str) -> None:
    """The kernel may write what is dirty at any time: nothing shows it while the guest waits."""
    path, length = place / "ram", 8 * MIB
    patterns.write(path, length, patterns.dense)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
    ):
        mirror = _mirror(source, length, target)
        mirror.update()
        mirror.catch_up()
        if how != "dug":
            os.pwrite(source, b"changed", 700 * PAGE)
            os.fdatasync(source)
        if how != "written":
            syscalls.punch_hole(source, 900 * PAGE, 16 * PAGE)
            os.fdatasync(source)
        os.pwrite(source, b"dirty", 1500 * PAGE)
        mirror.catch_up()
        assert os.pread(target, 5, 1500 * PAGE) == b"dirty"
        assert path.read_bytes() != (place / "mirror").read_bytes()
        assert not mirror.is_certain()
        mirror.update()
        assert path.read_bytes() == (place / "mirror").read_bytes()


def test_what_is_next_to_a_part_does_not_make_it_uncertain(place: Path) -> None:
    path = place / "ram"
    patterns.write(path, 8 * MIB, patterns.dense)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
    ):
        mirror = reflink.Mirror(source, 2 * MIB, 3 * MIB, target)
        mirror.update()
        mirror.catch_up()
        os.pwrite(source, b"outside", 6 * MIB)
        os.pwrite(source, b"outside", 1 * MIB)
        os.fdatasync(source)
        os.pwrite(source, b"inside", 3 * MIB)
        mirror.catch_up()
        assert mirror.is_certain()
        assert (place / "mirror").read_bytes() == path.read_bytes()[2 * MIB : 5 * MIB]


def test_a_kernel_that_does_not_say_what_is_dirty(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "ram"
    patterns.write(path, MIB, patterns.dense)
    with (
        files.opened(path, os.O_RDWR) as source,
        files.opened(place / "mirror", os.O_RDWR | os.O_CREAT) as target,
    ):
        mirror = _mirror(source, MIB, target)
        mirror.update()
        os.pwrite(source, b"changed", 0)
        mirror.catch_up()
        monkeypatch.setattr(syscalls, "_SYS_CACHESTAT", 1 << 20)
        assert mirror.catch_up() is None
        mirror.update()
        assert path.read_bytes() == (place / "mirror").read_bytes()


def test_random_writes_and_flushes(place: Path) -> None:
    """Whatever is written and flushed when: the mirror is equal, or says that it may not be."""
    path, length = place / "ram", 8 * MIB
    patterns.write(path, length, patterns.dense)
    chance = random.Random(16)
    pages = length // PAGE
    outcomes = set()
    with files.opened(path, os.O_RDWR) as source:

        def change() -> None:
            for _ in range(chance.randrange(60)):
                os.pwrite(source, chance.randbytes(9), chance.randrange(pages) * PAGE + 50)
            if chance.random() < 0.2:
                syscalls.punch_hole(source, chance.randrange(pages - 9) * PAGE, 9 * PAGE)
            if chance.random() < 0.4:
                os.fsync(source)

        for number in range(12):
            name = place / f"mirror-{number}"  # each is removed: its blocks are taken again
            with files.opened(name, os.O_RDWR | os.O_CREAT) as target:
                mirror = _mirror(source, length, target)
                for step in (mirror.update, mirror.update, mirror.catch_up):
                    step()
                    change()
                mirror.catch_up()
                is_equal = path.read_bytes() == name.read_bytes()
                change()
                assert is_equal or not mirror.is_certain()
                outcomes.add(is_equal)
                mirror.update()
                assert path.read_bytes() == name.read_bytes()
            name.unlink()
    assert outcomes == {True, False}
