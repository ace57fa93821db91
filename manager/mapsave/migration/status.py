"""QEMU's migration states (``qapi/migration.json``, ``MigrationStatus``)."""

import enum


class Status(enum.StrEnum):
    """The states that mapsave knows; ``query-migrate`` may name others."""

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_DEVICE = "postcopy-device"  # of QEMU 10.2 and later
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    WAIT_UNPLUG = "wait-unplug"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILING = "failing"  # of QEMU 11 and later: the guest is brought back, then `failed`
    FAILED = "failed"


OVER: frozenset[str] = frozenset((Status.COMPLETED, Status.FAILED, Status.CANCELLED))
IDLE = OVER | {Status.NONE}
