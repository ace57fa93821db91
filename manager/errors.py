"""Every error that mapsave reports, with what scripts may rely on.

One base class. Each subclass fixes a stable ``id``, the exit code of the command line and the HTTP
status of the service; its docstring is the meaning column of ``docs/errors.md``, which
``python -m manager.error_table`` prints. An instance adds the message (what is wrong and where), a
hint (what to do) and data for machines.

Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 refused by preflight, 4 save failed,
5 restore failed, 6 image invalid, 7 not permitted, 8 busy, 9 interrupted.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MapsaveError(Exception):
    """An unexpected failure, most likely a bug in mapsave."""

    id: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

    def __str__(self) -> str:
        return self.message  # which whoever knows the file or guest may have completed

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the object that ``--json`` and the service print."""
        return {
            "id": self.id,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
            "data": self.data,
        }


class OutputFailed(MapsaveError):
    """The outcome could not be printed, for want of room; what the command has done stays done."""

    id = "output.failed"


# Exit code 2: the command line or a YAML file is wrong; nothing was touched.


class UsageError(MapsaveError):
    """The command line does not fit: an unknown option, a missing or contradictory argument."""

    id = "usage"
    exit_code = 2
    http_status = 400


class ConfigError(UsageError):
    """A YAML file (configuration, job or policy) is wrong; file, line and nearest key are named."""

    id = "config.invalid"


class ConfigMissing(UsageError):
    """A YAML file that was asked for does not exist or cannot be read."""

    id = "config.missing"


class UnknownGuest(UsageError):
    """No guest of that name is configured, and it is not a ``qmp:`` or ``libvirt:`` address."""

    id = "guest.unknown"
    http_status = 404


class UnknownPolicy(UsageError):
    """No label policy of that name is shipped or configured."""

    id = "policy.unknown"
    http_status = 404


class ImageNotFound(UsageError):
    """There is no image file at the path that was given."""

    id = "image.not_found"
    http_status = 404


class Unsupported(UsageError):
    """The request is valid but this installation cannot do it; the message says what is missing."""

    id = "unsupported"
    http_status = 501


# Exit code 3: preflight says it would fail; the guest was not touched.


class Refused(MapsaveError):
    """Preflight found what would make the operation fail; the guest was not touched."""

    id = "check.refused"
    exit_code = 3
    http_status = 409


class Unreachable(Refused):
    """QEMU's monitor cannot be reached, does not answer in time, or is held by another client."""

    id = "check.unreachable"


class TooOld(Refused):
    """The QEMU is older than 9.1, the first that can save behind a header through descriptors."""

    id = "check.too_old"


class NotMigratable(Refused):
    """QEMU names a device or state that cannot be saved (its own blocked reasons are quoted)."""

    id = "check.not_migratable"


class MissingCapability(Refused):
    """This QEMU lacks a migration capability or parameter that the save needs."""

    id = "check.capability"


class WrongRunState(Refused):
    """The guest is in a run state from which it cannot be saved or restored."""

    id = "check.run_state"


class BadDirectory(Refused):
    """The image directory is gone, read-only, or cannot hold an image of that name."""

    id = "check.directory"


class NoRoom(Refused):
    """The file system has not enough free space for the image."""

    id = "check.room"


class NoDirectIO(Refused):
    """direct-io was demanded, but the image's file system does not take it."""

    id = "check.direct_io"


class ImageExists(Refused):
    """An image of that name exists already and ``--replace`` was not given."""

    id = "check.image_exists"


class DestinationMismatch(Refused):
    """The destination differs from the saved guest: machine type, RAM blocks or sizes."""

    id = "check.destination"


class DestinationNotZero(Refused):
    """The destination's RAM is not zero; QEMU would leave stale pages where the image has none."""

    id = "check.destination_not_zero"


class OlderQemu(Refused):
    """The destination is an older QEMU than the one that saved; ``--force`` overrides."""

    id = "check.older_qemu"


class AlreadyRestored(Refused):
    """The image was restored before; a second restore needs ``--again``."""

    id = "check.already_restored"


class NoDestination(Refused):
    """Nothing says how to start the destination: ``launch``, ``--into`` or a trusted command."""

    id = "check.no_destination"


# Exit code 4: the save failed; the guest is as it was before.


class SaveFailed(MapsaveError):
    """The save failed; the guest is in the run state it had before."""

    id = "save.failed"
    exit_code = 4


class SaveTimeout(SaveFailed):
    """The save took longer than its ``timeout`` and was cancelled; the guest is as before."""

    id = "save.timeout"
    http_status = 504


class SaveQemuDied(SaveFailed):
    """QEMU ended while it was saving, before its stream was whole."""

    id = "save.qemu_died"


class CommitFailed(SaveFailed):
    """QEMU wrote its stream, but the image could not be proven good and on stable storage."""

    id = "save.commit"


class GuestContinued(SaveFailed):
    """Somebody else continued the guest during the save, which was given up; the guest runs."""

    id = "save.guest_continued"


class GuestNotPutBack(SaveFailed):
    """QEMU refused to continue the guest after a save, good or failed; its run state is named."""

    id = "save.guest_not_put_back"


# Exit code 5: the restore failed; the image is as it was before.


class RestoreFailed(MapsaveError):
    """The restore failed; the image is as it was, and QEMU's own words are in the message."""

    id = "restore.failed"
    exit_code = 5


class LaunchFailed(RestoreFailed):
    """The destination QEMU could not be started; its standard error is quoted."""

    id = "restore.launch"


class RestoreTimeout(RestoreFailed):
    """The restore took longer than its ``timeout``; a destination mapsave started was ended."""

    id = "restore.timeout"
    http_status = 504


# Exit code 6: the image is not good.


class InvalidImage(MapsaveError):
    """The file is damaged: a field, checksum or structure is not what a good image has."""

    id = "image.corrupt"
    exit_code = 6
    http_status = 422


class NotAnImage(InvalidImage):
    """The file does not begin as an image does."""

    id = "image.not_an_image"


class TruncatedImage(InvalidImage):
    """The file ends before what its own fields promise."""

    id = "image.truncated"


class PartialImage(InvalidImage):
    """The image was never completed: a save was interrupted or is still running."""

    id = "image.partial"


class UnsupportedImage(InvalidImage):
    """The image uses a newer format or feature, which this version must know and doesn't."""

    id = "image.unsupported"


class EmptyRam(InvalidImage):
    """Every page bit of the image is clear although the guest's RAM was not empty."""

    id = "image.empty_ram"


# Exit code 7: a security module, file permissions or a policy stand against it.


class NotPermitted(MapsaveError):
    """File permissions do not allow it; path, owner and mode are named."""

    id = "permission.denied"
    exit_code = 7
    http_status = 403


class LabelRefused(NotPermitted):
    """A security module would refuse, or refused, the file to QEMU; label and context are named."""

    id = "label.refused"


class PolicyViolation(NotPermitted):
    """The label policy forbids images in that directory, or demands what cannot be applied."""

    id = "policy.violation"


class LabelUnavailable(NotPermitted):
    """The policy asks for a security module that is not active on this host."""

    id = "label.unavailable"


# Exit code 8: somebody else is at it.


class Busy(MapsaveError):
    """The guest or the image is in use by another mapsave."""

    id = "guest.busy"
    exit_code = 8
    http_status = 409


class AlreadyMigrating(Busy):
    """QEMU is already migrating or saving, on somebody else's behalf."""

    id = "guest.migrating"


# Exit code 9: told to stop.


class Interrupted(MapsaveError):
    """Ctrl-C, SIGTERM or a cancel request; the guest is as before."""

    id = "interrupted"
    exit_code = 9
    http_status = 499


# Errors of the monitor, turned into one of the above by whoever knows what was being attempted.


class MonitorError(MapsaveError):
    """The monitor failed outside of any operation that could say more."""

    id = "monitor.failed"


class CommandRefused(MonitorError):
    """QEMU answered a monitor command with an error; ``error_class`` and ``desc`` are its words."""

    id = "monitor.command"

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(
            f"QEMU refused {command}: {desc}", command=command, error_class=error_class
        )
        self.command = command
        self.error_class = error_class
        self.desc = desc


class MonitorLost(MonitorError):
    """The connection to QEMU's monitor broke."""

    id = "monitor.lost"


class MonitorBroken(MonitorError):
    """libvirtd ended while it passed a command on that must not be repeated; it is back."""

    id = "monitor.broken"


class MonitorTimeout(MonitorError):
    """QEMU did not answer a monitor command in time."""

    id = "monitor.timeout"
