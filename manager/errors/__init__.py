"""Every error that mapsave reports, with what scripts may rely on.

One base class. Each subclass fixes a stable ``id``, the exit code of the command line and the HTTP
status of the service; its docstring is the meaning column of ``docs/errors.md``, which
``python -m manager.error_table`` prints. An instance adds the message (what is wrong and where), a
hint (what to do) and data for machines.

Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 refused by preflight, 4 save failed,
5 restore failed, 6 image invalid, 7 not permitted, 8 busy, 9 interrupted.
"""

from __future__ import annotations

from typing import Any

from manager.errors.access import (
    AlreadyMigrating,
    Busy,
    EmptyRam,
    ForeignResource,
    InvalidImage,
    LabelRefused,
    LabelUnavailable,
    NotAnImage,
    NotCancellable,
    NotPermitted,
    PagesMissing,
    PartialImage,
    PolicyViolation,
    RoleMissing,
    ServiceBusy,
    ServiceRunning,
    ServiceStopping,
    TruncatedImage,
    UnsupportedImage,
    UntrustedDirectory,
    UntrustedImage,
)
from manager.errors.base import (
    MapsaveError,
    OutputFailed,
    ServiceLost,
)
from manager.errors.before import (
    AlreadyRestored,
    BadDirectory,
    ConfigError,
    ConfigMissing,
    DestinationMismatch,
    DestinationNotZero,
    HookRefused,
    ImageExists,
    ImageNotFound,
    JournalLost,
    JournalUnusable,
    MissingCapability,
    NoDestination,
    NoDirectIO,
    NoRoom,
    NoTime,
    NotMigratable,
    OlderQemu,
    QemuKeeps,
    Refused,
    RequestInvalid,
    RequestTooLarge,
    ServiceUnreachable,
    TooLittleLeft,
    TooOld,
    UnknownGuest,
    UnknownJob,
    UnknownOperation,
    UnknownPolicy,
    UnknownResource,
    Unreachable,
    UnsafeMode,
    Unsupported,
    UsageError,
    WrongMethod,
    WrongRunState,
)
from manager.errors.outcome import (
    CommandRefused,
    CommitFailed,
    GuestContinued,
    GuestNotEnded,
    GuestNotPutBack,
    Interrupted,
    KeptByQemu,
    LaunchFailed,
    MonitorBroken,
    MonitorError,
    MonitorLost,
    MonitorTimeout,
    QemuMigrates,
    RestoreFailed,
    RestoreStalled,
    RestoreTimeout,
    SaveFailed,
    SaveKeptByQemu,
    SaveQemuDied,
    SaveStalled,
    SaveTimeout,
)

__all__ = [
    "AlreadyMigrating",
    "AlreadyRestored",
    "BadDirectory",
    "Busy",
    "CommandRefused",
    "CommitFailed",
    "ConfigError",
    "ConfigMissing",
    "DestinationMismatch",
    "DestinationNotZero",
    "EmptyRam",
    "ForeignResource",
    "GuestContinued",
    "GuestNotEnded",
    "GuestNotPutBack",
    "HookRefused",
    "ImageExists",
    "ImageNotFound",
    "Interrupted",
    "InvalidImage",
    "JournalLost",
    "JournalUnusable",
    "KeptByQemu",
    "LabelRefused",
    "LabelUnavailable",
    "LaunchFailed",
    "MapsaveError",
    "MissingCapability",
    "MonitorBroken",
    "MonitorError",
    "MonitorLost",
    "MonitorTimeout",
    "NoDestination",
    "NoDirectIO",
    "NoRoom",
    "NoTime",
    "NotAnImage",
    "NotCancellable",
    "NotMigratable",
    "NotPermitted",
    "OlderQemu",
    "OutputFailed",
    "PagesMissing",
    "PartialImage",
    "PolicyViolation",
    "QemuKeeps",
    "QemuMigrates",
    "Refused",
    "RequestInvalid",
    "RequestTooLarge",
    "RestoreFailed",
    "RestoreStalled",
    "RestoreTimeout",
    "RoleMissing",
    "SaveFailed",
    "SaveKeptByQemu",
    "SaveQemuDied",
    "SaveStalled",
    "SaveTimeout",
    "ServiceBusy",
    "ServiceLost",
    "ServiceRunning",
    "ServiceStopping",
    "ServiceUnreachable",
    "TooLittleLeft",
    "TooOld",
    "TruncatedImage",
    "UnknownGuest",
    "UnknownJob",
    "UnknownOperation",
    "UnknownPolicy",
    "UnknownResource",
    "Unreachable",
    "UnsafeMode",
    "Unsupported",
    "UnsupportedImage",
    "UntrustedDirectory",
    "UntrustedImage",
    "UsageError",
    "WrongMethod",
    "WrongRunState",
    "from_dict",
]


def from_dict(found: dict[str, Any]) -> MapsaveError:
    """Return the error that ``as_dict`` made, of its own class; of the base class where unknown."""

    def classes(cls: type[MapsaveError]) -> list[type[MapsaveError]]:
        return [cls, *(each for child in cls.__subclasses__() for each in classes(child))]

    known = {cls.id: cls for cls in classes(MapsaveError)}
    error = MapsaveError.__new__(known.get(str(found.get("id")), MapsaveError))
    # Subclasses may be made from other arguments; what is told of them is the same.
    MapsaveError.__init__(
        error, str(found.get("message")), hint=found.get("hint"), **(found.get("data") or {})
    )
    return error
