"""Open the history of the service whatever has become of its file.

Damage to it must keep no paused guest from being recovered. So a file that cannot be used is
renamed, and a new one begun; where that fails as well, the history is in a directory of its own
until the service ends.
"""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from mapsave import errors, shielded
from mapsave.history import history
from mapsave.history.history import History

_log = logging.getLogger(__name__)

_BESIDE = ("-wal", "-shm")
_MEMORY = "/dev/shm"  # noqa: S108 (a directory of our own is made in it)


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[History, list[str]]]:
    """Open the history at ``path``, or another in its place; with what is wrong, in sentences.

    Raises Refused, NotPermitted only where no history can be had anywhere.
    """
    problems: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        try:
            kept = await stack.enter_async_context(history.opened(path))
        except errors.MapsaveError as error:
            problems.append(error.message)
            kept = await _another(stack, path, error, problems)
        for problem in problems:
            _log.error("%s", problem)
        yield kept, problems


async def _another(
    stack: contextlib.AsyncExitStack, path: Path, error: errors.MapsaveError, problems: list[str]
) -> History:
    if not error.data.get("may_pass") or path.is_dir():
        try:
            aside = await shielded.in_time(_set_aside, path)
            kept = await stack.enter_async_context(history.opened(path))
        except OSError as failed:
            problems.append(f"cannot rename {str(path)!r}: {failed.strerror}")
        except errors.MapsaveError as failed:
            problems.append(failed.message)
        else:
            problems.append(f"the history was renamed to {str(aside)!r}, and a new one was started")
            return kept
    directory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    place = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="mapsave-journal-", dir=directory)
    )
    kept = await stack.enter_async_context(history.opened(Path(place) / path.name))
    problems.append("the history of operations is kept only until the service exits")
    return kept


def _set_aside(path: Path) -> Path:
    """Rename a history, with the files that SQLite has beside it. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
    path.rename(aside)
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            beside.rename(aside.with_name(aside.name + suffix))
    return aside
