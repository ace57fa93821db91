"""Lower what the kernel lets a process take, and count what it has taken."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_GROUPS = Path("/sys/fs/cgroup")


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def lower(pid: int, resource: str, most: int, *, user: int | None = None) -> None:
    """Set both limits of ``resource`` as prlimit(1) names it; ``user`` is whose process it is.

    Root without CAP_SYS_RESOURCE may not set those of others.
    """
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    limit = f"--{resource}={most}:{most}"
    subprocess.run([*as_user, "prlimit", "--pid", str(pid), limit], check=True)


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    """Make a control group that can limit threads; its processes must have ended by the end.

    Skips where this machine lets us have none.
    """
    parent = _GROUPS / "pids" if (_GROUPS / "pids").is_dir() else _GROUPS
    try:
        if (parent / "cgroup.subtree_control").exists():
            (parent / "cgroup.subtree_control").write_text("+pids")
        group = Path(tempfile.mkdtemp(prefix="mapsave-test-", dir=parent))
    except OSError as error:
        pytest.skip(f"no control group of our own: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def limit_threads(group: Path, pid: int, left: int) -> None:
    """Move a process into ``group``, which then allows it ``left`` more threads."""
    (group / "cgroup.procs").write_text(str(pid))
    used = int((group / "pids.current").read_text())
    (group / "pids.max").write_text(str(used + left))
