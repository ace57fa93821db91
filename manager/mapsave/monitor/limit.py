"""One limit of the kernel on a process."""

from __future__ import annotations

import dataclasses


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
        """How much may still be taken."""
        return max(self.most - self.used, 0)
