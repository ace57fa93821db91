"""Run ``mapsave`` so that the disk fails once an image has its name, or at its end.

    python -m tests.faults.failing WHAT [mapsave's arguments…]

WHAT is ``journal``, and there is no room for the step ``committed``; ``directory``, and the fsync
that brings an image's name to stable storage fails; ``read-only``, and no partial image can be
removed either; or ``journal-end``, and no journal can be removed.
"""

import errno
import os
import stat
import sys
from collections.abc import Mapping
from typing import Any

from mapsave.cli import main
from mapsave.operations import journal


def fail(what: str) -> None:
    """Wrap the one call that is to fail."""
    plain, write, unlink = os.fsync, os.write, os.unlink
    begun: list[str] = []
    record = journal.Journal.record

    def watched(self: journal.Journal, step: str, data: Mapping[str, Any]) -> None:
        begun.append(step)
        record(self, step, data)

    def fsync(fd: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        if is_directory and (
            "commit" in begun or os.readlink(f"/proc/self/fd/{fd}").endswith("/images")
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if what == "read-only" and not is_directory and "complete" in begun:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        plain(fd)

    def short(fd: int, data: bytes) -> int:
        return write(fd, data[:7] if b'{"step": "committed"' in data else data)

    def refused(path: Any, *arguments: Any, **more: Any) -> None:
        if os.fspath(path).endswith(".jsonl" if what == "journal-end" else ".partial"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        unlink(path, *arguments, **more)

    journal.Journal.record = watched  # type: ignore[method-assign]
    if what == "journal":
        os.write = short  # type: ignore[assignment]
    if what in ("directory", "read-only"):
        os.fsync = fsync  # type: ignore[assignment]
    if what in ("read-only", "journal-end"):
        os.unlink = refused  # type: ignore[assignment]


if __name__ == "__main__":
    fail(sys.argv[1])
    main.main(sys.argv[2:])
