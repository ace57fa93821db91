"""The limits on threads in the control groups that a process is in, up to the root.

A group's ``pids.max`` holds for all groups within it, so every one on the way up counts. Version 1
and 2 may be mounted side by side. Sources: cgroups(7), proc(5), the kernel's documentation
(``admin-guide/cgroup-v1/pids.rst``, ``admin-guide/cgroup-v2.rst``).
"""

import dataclasses
import re
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")  # in mountinfo: space, tab, newline and backslash


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit by the name that users know it by, and how much of it is used.

    ``file`` is where it is set, if that is a file.
    """

    name: str
    most: int
    used: int
    file: str = ""

    @property
    def left(self) -> int:
        return max(self.most - self.used, 0)


@dataclasses.dataclass(frozen=True)
class _Mount:
    """Where a hierarchy is mounted, and the group in it that is seen there."""

    point: Path
    root: str
    is_v2: bool


def pids(pid: int, unknown: list[str]) -> list[Limit]:
    """Return the limits of every group of the process; append to ``unknown`` what is out of sight.

    A process that has exited has none.
    """
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        mounts = _mounts()
    except OSError as error:
        unknown.append(f"control groups of process {pid}: {error.strerror}")
        return []
    paths = [line.split(":", 2) for line in groups.splitlines()]
    version_1 = [path for _, controllers, path in paths if "pids" in controllers.split(",")]
    found: list[Limit] = []
    # A controller is in one hierarchy only.
    candidates = [mount for mount in mounts if mount.is_v2 != bool(version_1)]
    for path in version_1 or [path for number, _, path in paths if number == "0"]:
        found += _chain(path, candidates, unknown)
    return found


def _mounts() -> list[_Mount]:
    """Return the mounts of version 2, and of version 1's hierarchy that has the pids controller."""
    mounts = []
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        place, _, kind = line.partition(" - ")
        fields = place.split()[3:5]
        root, point = (_ESCAPED.sub(lambda match: chr(int(match[1], 8)), it) for it in fields)
        name, _, options = kind.split(" ", 2)
        if name == "cgroup2" or (name == "cgroup" and "pids" in options.split(",")):
            mounts.append(_Mount(Path(point), root, name == "cgroup2"))
    return mounts


def _chain(path: str, mounts: list[_Mount], unknown: list[str]) -> list[Limit]:
    for mount in mounts:
        inside = path.removeprefix(mount.root.rstrip("/"))
        is_below = path == mount.root or (path.startswith(mount.root) and inside.startswith("/"))
        if not is_below or ".." in inside.split("/"):
            continue
        group = mount.point / inside.lstrip("/")
        if not group.is_dir():
            continue
        groups = [group, *group.parents][: len(group.parts) - len(mount.point.parts) + 1]
        # The root of a hierarchy has none of these files, so who sees one here sees no further up.
        if any((mount.point / name).exists() for name in ("pids.max", "cgroup.type")):
            unknown.append(f"limits of the control groups above {mount.point}")
        return [limit for each in groups if (limit := _limit(each)) is not None]
    unknown.append(f"control group {path!r}, which is not mounted here")
    return []


def _limit(group: Path) -> Limit | None:
    try:
        most = (group / "pids.max").read_text(encoding="utf-8").strip()
        used = int((group / "pids.current").read_text(encoding="utf-8"))
    except OSError:
        return None  # the root has no limit, nor has a group to which the controller is not given
    limit = group / "pids.max"
    return None if most == "max" else Limit(f"pids.max of {group}", int(most), used, str(limit))
