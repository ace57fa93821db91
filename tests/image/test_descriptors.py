"""The pair that QEMU is handed: each rule kept, and each broken once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import descriptors
from mapsave.image.descriptors import Pair

from tests.kit import storage

WRONLY, RDONLY, RDWR, DIRECT = os.O_WRONLY, os.O_RDONLY, os.O_RDWR, os.O_DIRECT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file on a file system that takes O_DIRECT."""
    if not storage.takes_direct_io(tmp_path):
        pytest.skip("the temporary directory does not take O_DIRECT")
    path = tmp_path / "image"
    path.write_bytes(b"x" * 8192)
    return path


@contextmanager
def opened(*ways: tuple[Path, int]) -> Iterator[list[int]]:
    with ExitStack() as stack:
        found = []
        for path, flags in ways:
            fd = os.open(path, flags)
            stack.callback(os.close, fd)
            found.append(fd)
        yield found


@pytest.mark.parametrize("access", [WRONLY, RDONLY])
@pytest.mark.parametrize("direct", [False, True])
def test_good_pair(file: Path, access: int, direct: bool) -> None:
    with opened((file, access), (file, access | (DIRECT if direct else 0))) as fds:
        os.lseek(fds[0], 100, os.SEEK_SET)
        os.lseek(fds[1], 200, os.SEEK_SET)
        Pair(*fds, direct_io=direct).check(access)
        assert [os.lseek(fd, 0, os.SEEK_CUR) for fd in fds] == [100, 200]


@pytest.mark.parametrize(
    ("first", "second", "direct", "words"),
    [
        (RDWR, WRONLY | DIRECT, True, "access modes"),
        (WRONLY, RDWR | DIRECT, True, "access modes"),
        (RDONLY, RDONLY | DIRECT, True, "access modes"),
        (RDWR, RDWR, False, "access modes"),
        (WRONLY | os.O_APPEND, WRONLY | DIRECT, True, "O_APPEND"),
        (WRONLY, WRONLY | DIRECT | os.O_APPEND, True, "O_APPEND"),
        (WRONLY | os.O_SYNC, WRONLY | DIRECT, True, "O_SYNC"),
        (WRONLY, WRONLY | DIRECT | os.O_DSYNC, True, "O_DSYNC"),
        (WRONLY, WRONLY, True, "O_DIRECT"),
        (WRONLY | DIRECT, WRONLY | DIRECT, True, "O_DIRECT"),
        (WRONLY | DIRECT, WRONLY, True, "O_DIRECT"),
        (WRONLY, WRONLY | DIRECT, False, "O_DIRECT"),
        (WRONLY | DIRECT, WRONLY, False, "O_DIRECT"),
    ],
)
def test_flags_that_qemu_would_not_match(
    file: Path, first: int, second: int, direct: bool, words: str
) -> None:
    with (
        opened((file, first), (file, second)) as fds,
        pytest.raises(errors.MapsaveError, match=words),
    ):
        Pair(*fds, direct_io=direct).check(WRONLY)


def test_pair_for_writing_is_none_for_reading(file: Path) -> None:
    with opened((file, WRONLY), (file, WRONLY)) as fds:
        Pair(*fds, direct_io=False).check(WRONLY)
        with pytest.raises(errors.MapsaveError, match="access modes"):
            Pair(*fds, direct_io=False).check(RDONLY)


@pytest.mark.parametrize("position", [0, 5, 1 << 40])
def test_duplicate_of_one_description(file: Path, position: int) -> None:
    with opened((file, WRONLY)) as (fd,):
        other = os.dup(fd)
        try:
            os.lseek(fd, position, os.SEEK_SET)
            with pytest.raises(errors.MapsaveError, match="duplicates"):
                Pair(fd, other, direct_io=False).check(WRONLY)
            assert os.lseek(fd, 0, os.SEEK_CUR) == position
        finally:
            os.close(other)


def test_same_descriptor_twice(file: Path) -> None:
    with opened((file, WRONLY)) as (fd,), pytest.raises(errors.MapsaveError, match="duplicates"):
        Pair(fd, fd, direct_io=False).check(WRONLY)


def test_two_files(file: Path) -> None:
    other = file.with_name("other")
    other.touch()
    with (
        opened((file, WRONLY), (other, WRONLY | DIRECT)) as fds,
        pytest.raises(errors.MapsaveError, match="two different files"),
    ):
        Pair(*fds, direct_io=True).check(WRONLY)


def test_no_regular_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (
        opened((fifo, RDONLY | os.O_NONBLOCK), (fifo, RDONLY | os.O_NONBLOCK)) as fds,
        pytest.raises(errors.MapsaveError, match="not a regular file"),
    ):
        Pair(*fds, direct_io=False).check(RDONLY)


@pytest.mark.parametrize("access", [WRONLY, RDONLY])
@pytest.mark.parametrize("direct", [False, True])
def test_paired_opens_anew_and_closes(file: Path, access: int, direct: bool) -> None:
    with opened((file, RDWR | os.O_APPEND)) as (fd,):
        file.rename(file.with_name("renamed"))
        with descriptors.paired(fd, access, direct_io=direct) as pair:
            pair.check(access)
            assert os.fstat(pair.first).st_ino == os.fstat(fd).st_ino
            assert not any(os.get_inheritable(each) for each in (pair.first, pair.second))
        for each in (pair.first, pair.second):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(each)
        os.fstat(fd)


def probe(directory: Path) -> str | None:
    """Probe, and look that nothing is left."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    before = os.listdir(fd)
    try:
        return descriptors.probe_direct_io(fd)
    finally:
        assert os.listdir(fd) == before
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("sector", [512, 4096])
def test_probe_on_ext4(tmp_path: Path, sector: int) -> None:
    with storage.loop_filesystem("ext4", 16 * storage.MIB, tmp_path, sector=sector) as place:
        assert probe(place) is None


@pytest.mark.root
def test_probe_agrees_with_the_kernel_on_tmpfs(tmp_path: Path) -> None:
    # Since Linux 6.6 a tmpfs takes O_DIRECT.
    with storage.tmpfs(1 << 20, tmp_path) as place:
        refusal = probe(place)
        assert (refusal is None) == storage.takes_direct_io(place)


@pytest.mark.root
def test_file_system_without_direct_io(tmp_path: Path) -> None:
    with storage.without_direct_io(tmp_path) as place:
        assert probe(place) == "the file system refuses O_DIRECT"
        path = place / "image"
        path.touch()
        with opened((path, RDWR)) as (fd,):
            with pytest.raises(errors.NoDirectIO), descriptors.paired(fd, WRONLY, direct_io=True):
                pass
            with descriptors.paired(fd, WRONLY, direct_io=False) as pair:
                pair.check(WRONLY)
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(errors.NoDirectIO), descriptors.paired(fd, WRONLY, direct_io=True):
                pass
            assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_probe_of_a_file_system_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernels of today give O_TMPFILE on every file system that can be mounted here.
    real = os.open

    def without(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", without)
    with storage.without_direct_io(tmp_path) as place:
        assert probe(place) == "the file system refuses O_DIRECT"


@pytest.mark.root
def test_probe_of_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        storage.tmpfs(1 << 20, tmp_path) as place,
        storage.read_only(place),
        pytest.raises(OSError, match="Read-only"),
    ):
        probe(place)
