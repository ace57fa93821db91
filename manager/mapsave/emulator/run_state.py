"""The run states of an emulated guest, by QEMU's names (``qapi/run-state.json``)."""

from __future__ import annotations

import enum


class RunState(enum.Enum):
    """What ``query-status`` names."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    INMIGRATE = "inmigrate"
    # A guest comes into these only by an image of a QEMU in which it was in them.
    SUSPENDED = "suspended"
    IO_ERROR = "io-error"
    WATCHDOG = "watchdog"
    SHUTDOWN = "shutdown"
    GUEST_PANICKED = "guest-panicked"
    INTERNAL_ERROR = "internal-error"


# QEMU takes a guest in one of these for one that goes on: `stop` stops it, a failed save does not.
LIVE = frozenset((RunState.RUNNING, RunState.SUSPENDED))
NEED_RESET = frozenset((RunState.SHUTDOWN, RunState.INTERNAL_ERROR))
