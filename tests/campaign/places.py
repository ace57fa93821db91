"""Where the images of a run go: a directory, or a small disk of its own that may fail."""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.plan import Plan
from tests.kit import cli, files, storage, wait

MIB = 1 << 20
# linux/ext4.h: EXT4_IOC_SHUTDOWN, the file system refuses all from now on, its log not flushed.
_SHUTDOWN = 0x8004587D
_NO_FLUSH = (2).to_bytes(4, "little")


@dataclass
class Site(cli.Site):
    """A site whose images are on a disk of their own, if ``disk`` says where."""

    disk: Path | None = None

    @property
    def images(self) -> Path:
        return (self.disk or self.directory) / "images"

    def dies(self) -> None:
        """Let the disk refuse everything; what was not synced is lost."""
        assert self.disk is not None
        with _opened(self.disk) as fd:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_FLUSH)

    def comes_back(self) -> None:
        """Mount the disk again, as after a crash of the host."""
        assert self.disk is not None
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        (device,) = (source for source, place, *_ in mounts if place == str(self.disk))

        def is_back() -> bool:
            # Where another mount namespace still has it, it is the dead one that is mounted again.
            _run("umount", str(self.disk))
            _run("mount", "-t", "ext4", device, str(self.disk))
            with contextlib.suppress(OSError):
                durable(self.images)
                return True
            return False

        wait.until(is_back, what="the disk to be free")


def durable(path: Path) -> None:
    """Bring a file or directory to stable storage: a crash is to take only what mapsave wrote."""
    with _opened(path) as fd:
        os.fsync(fd)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with files.opened(path) as fd:
        yield fd


def _run(*words: str) -> None:
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


@contextmanager
def site_of(plan: Plan, directory: Path) -> Iterator[Site]:
    """Make the site of a run, on the disk that its plan wants; the disk is gone at the end."""
    # Short where a load is to hang; elsewhere one that is slow on a busy host is not given up.
    settings = {"restore": {"stall": "4s"}} if plan.destination_rules else {}
    (directory / "site").mkdir()
    # A checkpoint wants room for all that the guest may write, twice on XFS.
    size = (600 if plan.is_checkpoint else 2 * plan.shape.memory + 32) * MIB
    with ExitStack() as stack:
        if plan.disk == "plain":
            yield Site(directory / "site", settings=settings)
            return
        if plan.disk == "tmpfs":
            disk = stack.enter_context(storage.tmpfs(size, directory))
        else:
            least = max(size, storage.SMALLEST[plan.disk])
            disk = stack.enter_context(storage.loop_filesystem(plan.disk, least, directory))
        made = Site(directory / "site", settings=settings, disk=disk)
        durable(disk)
        durable(made.images)
        yield made
