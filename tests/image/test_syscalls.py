"""The system calls that Python lacks do what their man pages say."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from mapsave.image import syscalls

NO_SUCH_CALL = OSError(errno.ENOSYS, "Function not implemented")


@pytest.fixture(params=["openat2", "old kernel"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "old kernel":
        monkeypatch.setattr(syscalls, "_call", refuse("syscall", NO_SUCH_CALL))


def _no_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def refuse(name: str, error: OSError) -> Any:
    """Return a ``_call`` in which the function ``name`` fails with ``error``."""
    real = syscalls._call

    def call(called: str, *args: Any) -> int:
        if called == name:
            raise error
        return real(called, *args)

    return call


@pytest.mark.usefixtures("_kernel")
def test_open_beneath(held: int, tmp_path: Path) -> None:
    fd = syscalls.open_beneath(held, "a b\n", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        assert os.path.samestat(os.fstat(fd), (tmp_path / "a b\n").stat())
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    with pytest.raises(FileExistsError):
        syscalls.open_beneath(held, "a b\n", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    with pytest.raises(FileNotFoundError):
        syscalls.open_beneath(held, "missing", os.O_RDONLY)


@pytest.mark.usefixtures("_kernel")
def test_open_beneath_follows_no_link(held: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "inside").symlink_to("file")
    (tmp_path / "outside").symlink_to("/etc/passwd")
    for name in ("inside", "outside"):
        with pytest.raises(OSError, match="symbolic links") as caught:
            syscalls.open_beneath(held, name, os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("name", ["../file", "/etc/passwd", "sub/../../file", "link/file"])
def test_open_beneath_leads_nowhere_else(held: int, tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        syscalls.open_beneath(held, name, os.O_RDONLY)
    assert caught.value.errno in (errno.EXDEV, errno.ELOOP, errno.ENOSYS)


@pytest.fixture(params=["renameat2", "link", "neither"])
def _renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "renameat2":
        error = OSError(errno.EINVAL, "Invalid argument")
        monkeypatch.setattr(syscalls, "_call", refuse("renameat2", error))
    if request.param == "neither":
        monkeypatch.setattr(os, "link", _no_links)


@pytest.mark.usefixtures("_renaming")
def test_rename_without_replacing(held: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    syscalls.rename(held, "a", "b", replace=False)
    assert os.listdir(held) == ["b"]
    (tmp_path / "a").write_text("another")
    with pytest.raises(FileExistsError):
        syscalls.rename(held, "a", "b", replace=False)
    assert (tmp_path / "b").read_text() == "a"
    assert (tmp_path / "a").read_text() == "another"
    with pytest.raises(FileNotFoundError):
        syscalls.rename(held, "missing", "c", replace=False)


def test_rename_that_replaces(held: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    syscalls.rename(held, "a", "b", replace=True)
    assert os.listdir(held) == ["b"]
    assert (tmp_path / "b").read_text() == "a"


def test_preallocating_keeps_the_size(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        file.write(b"header")
        file.flush()
        syscalls.preallocate(file.fileno(), 0, 4 << 20)
        stats = os.fstat(file.fileno())
        assert stats.st_size == 6
        assert stats.st_blocks * 512 >= 4 << 20


def test_punched_hole_gives_room_back_and_reads_as_zeros(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        before = os.fstat(file.fileno())
        syscalls.punch_hole(file.fileno(), 8192, 512 << 10)
        after = os.fstat(file.fileno())
        assert after.st_size == before.st_size
        assert before.st_blocks - after.st_blocks >= (500 << 10) // 512
        file.seek(0)
        content = file.read()
    assert content[8192 : 8192 + (512 << 10)].count(0) == 512 << 10
    assert content.count(b"x") == (1 << 20) - (512 << 10)


def test_failing_calls_say_why(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        with pytest.raises(OSError) as caught:
            syscalls.preallocate(file.fileno(), 0, 0)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.punch_hole(-1, 0, 1)
    assert syscalls.direct_io_alignment(-1) is None


def test_alignment_of_direct_io_is_a_power_of_two_where_known(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        found = syscalls.direct_io_alignment(file.fileno())
    # None before Linux 6.1; 0 where the file system takes none.
    assert found is None or all(each == 0 or each.bit_count() == 1 for each in found)
