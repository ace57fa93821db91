"""Real file systems for tests: made, mounted, and gone at the end. They need root."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from tests.kit import wait

Kind = Literal["ext4", "xfs", "btrfs"]
MIB = 1 << 20

# The other mkfs refuse to make smaller ones.
SMALLEST: dict[Kind, int] = {"ext4": 8 * MIB, "xfs": 300 * MIB, "btrfs": 128 * MIB}
# Without discards, which would make holes in the backing file; the last word takes the block size.
_MKFS: dict[Kind, list[str]] = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", "-b", "{}"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K", "-b", "size={}"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K", "-s", "{}"],
}
_MOUNT: dict[Kind, str] = {"ext4": "", "xfs": "", "btrfs": ",nodiscard"}
# Root's PATH may lack the directories of these tools, for instance after su.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_mounted: set[Path] = set()
_backing: set[Path] = set()


@contextmanager
def loop_filesystem(
    kind: Kind,
    size: int,
    directory: Path,
    *,
    sector: int = 512,
    block: int = 4096,
    like_disk: bool = False,
    options: str = "defaults",
    mkfs: Sequence[str] = (),
) -> Iterator[Path]:
    """Mount a new file system of ``size`` bytes on a loop device; yield where.

    Its sparse backing file and its mount point are made in ``directory``. ``sector`` is the
    logical sector size in bytes, which O_DIRECT has to respect: 512 or 4096. ``block`` is the file
    system's block in bytes. ``like_disk``: as fast as the disk below ``directory``, as the backing
    file is written in full, and used past the page cache. ``options``: those of mount, ``mkfs``:
    more of that command's.
    """
    assert size >= SMALLEST[kind], f"{kind} takes {SMALLEST[kind]} bytes at least"
    number = len(_backing)
    backing = (directory / f"{kind}-{number}.img").resolve()
    _backing.add(backing)
    try:
        with backing.open("xb") as file:
            file.truncate(size)
            if like_disk:
                _write_all(file, size)
        with _loop_device(backing, sector, direct=like_disk) as device:
            _run(*(word.format(block) for word in _MKFS[kind]), *mkfs, device)
            place = directory / f"{kind}-{number}"
            with _mount(place, kind, device, "-o", f"{options}{_MOUNT[kind]}") as mounted:
                yield mounted
    finally:
        backing.unlink()


def unavailable(kind: Kind) -> str | None:
    """Say why no such file system can be made on this machine, or return None."""
    command = _MKFS[kind][0]
    return None if shutil.which(command, path=_PATH) else f"there is no {command}"


@contextmanager
def tmpfs(size: int, directory: Path, *options: str) -> Iterator[Path]:
    """Mount a tmpfs of ``size`` bytes on a new directory inside ``directory``; yield where."""
    with _mount(directory / "tmpfs", "tmpfs", "tmpfs", "-o", f"size={size}", *options) as place:
        yield place


@contextmanager
def without_direct_io(directory: Path) -> Iterator[Path]:
    """Mount a file system that refuses O_DIRECT (a ramfs, which has no limit either)."""
    with _mount(directory / "ramfs", "ramfs", "ramfs", "-o", "mode=700") as place:
        assert not takes_direct_io(place), "this kernel's ramfs takes O_DIRECT"
        yield place


@contextmanager
def frozen(mount_point: Path) -> Iterator[None]:
    """Freeze a file system, where every write waits then; thaw it at the end."""
    _run("fsfreeze", "--freeze", str(mount_point))
    try:
        yield
    finally:
        _run("fsfreeze", "--unfreeze", str(mount_point))


@contextmanager
def failing(mount_point: Path) -> Iterator[None]:
    """Take the storage away from a file system of ours on a loop device: all reading fails (EIO).

    What is cached is there still. Its files are lost.
    """
    (source,) = (line.split()[0] for line in _mounts() if line.split()[1] == str(mount_point))
    backing = Path("/sys/block", Path(source).name, "loop/backing_file").read_text().strip()
    size = os.stat(backing).st_size
    os.truncate(backing, 4096)
    _run("losetup", "--set-capacity", source)
    try:
        yield
    finally:
        os.truncate(backing, size)
        _run("losetup", "--set-capacity", source)


def _mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()


@contextmanager
def unmounted_at_end(place: Path) -> Iterator[Path]:
    """See that what another process mounts at ``place`` is unmounted, though it may be in use."""
    place.mkdir()
    _mounted.add(place)
    try:
        yield place
    finally:
        _run("umount", "--lazy", str(place))
        place.rmdir()


@contextmanager
def read_only(mount_point: Path) -> Iterator[None]:
    """Remount read-only, and writable again at the end."""
    _run("mount", "-o", "remount,ro", str(mount_point))
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", str(mount_point))


@contextmanager
def filled(directory: Path, *, leave: int) -> Iterator[None]:
    """Use up the file system mounted at ``directory``, one of ours, but for ``leave`` bytes."""
    assert directory in _mounted and directory.is_mount(), f"{directory} is not ours to fill"
    path = directory / ".filled"
    room = os.statvfs(directory)
    with path.open("wb") as file:
        wanted = room.f_bavail * room.f_frsize - leave
        assert wanted > 0, f"only {wanted + leave} bytes are free"
        os.posix_fallocate(file.fileno(), 0, wanted)
    try:
        yield
    finally:
        path.unlink()


def takes_direct_io(directory: Path) -> bool:
    """Return whether files in ``directory`` can be opened with O_DIRECT."""
    path = directory / ".direct-io"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def left_behind() -> list[str]:
    """Return the mounts and loop devices of ours that still exist."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    points = {line.split()[4].encode().decode("unicode_escape") for line in mounts}
    left = [f"mount {point}" for point in sorted(map(str, _mounted)) if point in points]
    devices = [(path, device) for path, device in loop_devices() if path in _backing]
    return left + [f"loop device {device} on {path}" for path, device in devices]


def loop_devices() -> Iterator[tuple[Path, str]]:
    """Yield the backing file of each loop device of this machine, and the device."""
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        # A device may be detached between the listing and the reading.
        with suppress(OSError):
            path = entry.read_text().strip().removesuffix(" (deleted)")
            yield Path(path), f"/dev/{entry.parts[3]}"


def _write_all(file: BinaryIO, size: int) -> None:
    """Give a file all its blocks, written, so that writes into it change no metadata."""
    noise = os.urandom(MIB)
    for start in range(0, size, MIB):
        file.write(noise[: size - start])
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _loop_device(backing: Path, sector: int, *, direct: bool) -> Iterator[str]:
    options = [f"--sector-size={sector}", f"--direct-io={'on' if direct else 'off'}"]
    device = _run("losetup", "--find", "--show", *options, str(backing))
    try:
        # Where the file cannot be opened so, the kernel takes the page cache and says nothing.
        dio = Path("/sys/block", Path(device).name, "loop/dio").read_text().strip()
        assert not direct or dio == "1", f"the file system of {backing} takes no direct I/O"
        yield device
    finally:
        _run("losetup", "--detach", device)


@contextmanager
def mounted(backing: Path, place: Path) -> Iterator[Path]:
    """Mount a copy of the file of an XFS, be the other mounted or not; yield where."""
    with (
        _loop_device(backing, 512, direct=False) as device,
        _mount(place, "xfs", device, "-o", "nouuid") as found,
    ):
        yield found


@contextmanager
def _mount(place: Path, kind: str, source: str, *options: str) -> Iterator[Path]:
    place = place.resolve()
    place.mkdir()
    _run("mount", "-t", kind, *options, source, str(place))
    _mounted.add(place)
    try:
        yield place
    finally:
        _unmount(place)
        place.rmdir()


def _unmount(place: Path) -> None:
    """Unmount; a process that was just killed may keep the mount busy for a moment."""
    deadline = time.monotonic() + wait.LONG
    while True:
        try:
            _run("umount", str(place))
            return
        except AssertionError:
            if time.monotonic() > deadline:
                _run("umount", "--lazy", str(place))
                raise
            time.sleep(0.05)


def _run(*arguments: str) -> str:
    env = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, f"{' '.join(arguments)}: {result.stderr.strip()}"
    return result.stdout.strip()
