"""Our own limit on open files: raised as far as we may, and looked at before an operation begins.

A service with many saves under way, or a shell with a low ``ulimit -n``, would else fail half-way.
"""

import contextlib
import os
import resource
from collections.abc import AsyncIterator

from mapsave import errors

# What an operation has open at once, at most (``tests/faults/test_limits.py`` counts).
NEEDED = 16
# Some programs, which hooks may run, close all that they might have open: so not without end.
_MANY = 16384
_AGAIN = 0.05  # seconds between two looks whether another operation has ended
# Operations under way, and what was open beside them when the first of them began.
_operations = 0
_others = 0
_HINT = "raise the limit (ulimit -n; of a systemd unit LimitNOFILE=)"


def allow_many() -> None:
    """Raise the soft limit, for many operations at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY if hard == resource.RLIM_INFINITY else min(hard, _MANY)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check() -> None:
    """Raise TooLittleLeft where we may open too few files for an operation."""
    most = _most()
    left = most - _opened(most)
    if left < NEEDED:
        raise errors.TooLittleLeft(
            f"mapsave has {max(left, 0)} open files left of {most} (RLIMIT_NOFILE) and needs "
            f"{NEEDED}",
            hint=_HINT,
            limit="RLIMIT_NOFILE",
            most=most,
            left=left,
            needed=NEEDED,
        )


@contextlib.asynccontextmanager
async def reserved() -> AsyncIterator[None]:
    """Have open files left for one operation, beside the others of this process.

    Where the limit does not allow all of them at once, wait until another has ended. Raises
    TooLittleLeft where there is no other.
    """
    import asyncio  # which commands that begin no operation do without

    global _operations, _others
    if _operations == 0:
        _others = _opened(_most())
    while True:
        if _operations == 0 or _is_room():
            break
        await asyncio.sleep(_AGAIN)
    check()
    _operations += 1
    try:
        yield
    finally:
        _operations -= 1


def _is_room() -> bool:
    """Return whether all operations, and one more, may open all that they need."""
    most, reserve = _most(), NEEDED * _operations
    others = max(_others, _opened(most) - reserve)
    return most - others >= reserve + NEEDED


def _most() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MANY if most == resource.RLIM_INFINITY else most


def _opened(most: int) -> int:
    """Return how many files are open; ``most`` where not even a directory can be opened."""
    try:
        return sum(int(number) < most for number in os.listdir("/proc/self/fd"))
    except OSError:
        return most
