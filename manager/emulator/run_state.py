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
