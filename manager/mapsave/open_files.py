"""Our own limit on open files: raised as far as we may, and looked at before an operation begins.

A service with many saves under way, or a shell with a low ``ulimit -n``, would else fail half-way.
"""

from __future__ import annotations

import os
import resource

from mapsave import errors

# What an operation has open at once, at most (``tests/faults/test_limits.py`` counts).
NEEDED = 16
# Some programs, which hooks may run, close all that they might have open: so not without end.
_MANY = 16384
_HINT = "raise the limit (ulimit -n; of a systemd unit LimitNOFILE=)"


def allow_many() -> None:
    """Raise the soft limit, for many operations at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY if hard == resource.RLIM_INFINITY else min(hard, _MANY)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check() -> None:
    """Raise TooLittleLeft where we may open too few files for an operation."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return
    try:
        left = most - sum(int(number) < most for number in os.listdir("/proc/self/fd"))
    except OSError:
        left = 0  # not even a directory can be opened
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
