"""What the security modules share: the target and the label."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

Access = Literal["save", "restore"]

ACTION: dict[Access, str] = {"save": "write", "restore": "read"}


@dataclasses.dataclass(frozen=True)
class Target:
    """The image: an open descriptor, its path, names it has or will have, QEMU's pid, the use.

    ``expected``: QEMU is to open the file itself as it starts, in the contexts of that label.
    """

    fd: int
    path: str
    other_paths: tuple[str, ...]
    pid: int | None
    access: Access
    expected: Label | None = None


@dataclasses.dataclass(frozen=True)
class Label:
    """What one security module has on the image.

    ``value``: as read back from the file (from ``check``: what would be there). ``process``:
    QEMU's context. ``previous``: before mapsave came. ``detail``: what undoing needs.
    """

    module: str
    value: str | None = None
    process: str | None = None
    previous: str | None = None
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: tuple[Label, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the label in JSON's types, for ``--json``, the journal and the image."""
        return {**dataclasses.asdict(self), "others": [other.as_dict() for other in self.others]}

    def parts(self) -> tuple[Label, ...]:
        """Return this label and the others."""
        return (self, *self.others)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What went wrong when a label was taken back or set for rest, and what to do.

    ``recoverable``: ``mapsave recover`` can still put it right, so the journal has to stay.
    """

    text: str
    recoverable: bool


def who(pid: int | None) -> str:
    """Return how messages call the process."""
    return "QEMU" if pid is None else f"QEMU (pid {pid})"


def name_of(fd: int, path: str) -> str:
    """Return the path that the kernel knows ``fd`` by: no symlinks; ``path`` if it is unlinked."""
    try:
        link = os.readlink(f"/proc/self/fd/{fd}")
        mine = os.fstat(fd)
        stats = os.stat(link)
    except OSError:
        return os.path.realpath(path)
    same = (mine.st_dev, mine.st_ino) == (stats.st_dev, stats.st_ino)
    return link if same else os.path.realpath(path)
