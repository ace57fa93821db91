"""Hold the guest's QEMU to limits that are close to what it uses."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.campaign.guests import Guest
from tests.kit import wait

_PIDS = Path("/sys/fs/cgroup/pids")


@contextmanager
def held(guest: Guest, name: str, more: int) -> Iterator[None]:
    """Let QEMU have ``more`` descriptors or threads than it has, or files of ``more`` bytes."""
    if name == "pids":
        with _few_threads(guest, more):
            yield
        return
    if name == "nofile":
        number, limit = resource.RLIMIT_NOFILE, more + len(os.listdir(f"/proc/{guest.pid}/fd"))
    else:
        number, limit = resource.RLIMIT_FSIZE, more
    old = resource.prlimit(guest.pid, number)
    resource.prlimit(guest.pid, number, (limit, old[1]))
    try:
        yield
    finally:
        if guest.alive():
            resource.prlimit(guest.pid, number, old)


@contextmanager
def _few_threads(guest: Guest, more: int) -> Iterator[None]:
    """Put QEMU into a control group (version 1) that takes few more threads."""
    if not (_PIDS / "cgroup.procs").exists():
        yield
        return
    group = _PIDS / f"mapsave-campaign-{guest.pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(guest.pid))
        threads = len(os.listdir(f"/proc/{guest.pid}/task"))
        (group / "pids.max").write_text(str(threads + more))
        yield
    finally:
        if guest.alive():
            (_PIDS / "cgroup.procs").write_text(str(guest.pid))
        wait.until(lambda: not (group / "cgroup.procs").read_text(), what="an empty group")
        group.rmdir()
