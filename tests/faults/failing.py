"""Run ``mapsave save`` so that the disk fails once the image has its name.

    python -m tests.faults.failing WHAT [mapsave's arguments…]

WHAT is ``journal``, and there is no room for the step ``committed``; or ``directory``, and the
fsync that brings the image's name to stable storage fails.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from manager.cli import main
from manager.operations import journal

if TYPE_CHECKING:
    from collections.abc import Mapping


def fail(what: str) -> None:
    """Wrap the one call that is to fail."""
    plain, write, begun = os.fsync, os.write, []
    record = journal.Journal.record

    def watched(self: journal.Journal, step: str, data: Mapping[str, Any]) -> None:
        begun.append(step)
        record(self, step, data)

    def fsync(fd: int) -> None:
        if "commit" in begun and stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(fd)

    def short(fd: int, data: bytes) -> int:
        return write(fd, data[:7] if b'"step": "committed"' in data else data)

    journal.Journal.record = watched  # type: ignore[method-assign]
    if what == "journal":
        os.write = short  # type: ignore[assignment]
    else:
        os.fsync = fsync  # type: ignore[assignment]


if __name__ == "__main__":
    fail(sys.argv[1])
    main.main(sys.argv[2:])
