"""Nothing was touched: the request is wrong (exit code 2), or preflight refuses it (3)."""

from __future__ import annotations

from mapsave.errors.base import MapsaveError

# Exit code 2: the command line or a YAML file is wrong; nothing was touched.


class UsageError(MapsaveError):
    """The command line is wrong: an unknown option, a missing or contradictory argument."""

    id = "usage"
    exit_code = 2
    http_status = 400


class ConfigError(UsageError):
    """A YAML file (configuration, job or policy) is wrong; the message names file, line and
    nearest key."""

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
    """There is no image file at that path."""

    id = "image.not_found"
    http_status = 404


class RequestInvalid(UsageError):
    """A request to the service is invalid: malformed JSON, an unknown field, a wrong value."""

    id = "request.invalid"


class RequestTooLarge(UsageError):
    """A request to the service is too large."""

    id = "request.too_large"
    http_status = 413


class WrongMethod(UsageError):
    """The service has that resource, but not with that method; the message names its methods."""

    id = "request.method"
    http_status = 405


class UnknownResource(UsageError):
    """The service has nothing at that path."""

    id = "request.not_found"
    http_status = 404


class UnknownOperation(UsageError):
    """There is no operation with that id, active or in the history."""

    id = "operation.unknown"
    http_status = 404


class UnknownJob(UsageError):
    """There is no job of that name in the jobs directory."""

    id = "job.unknown"
    http_status = 404


class Unsupported(UsageError):
    """The request is valid but this installation cannot do it; the message says what is missing."""

    id = "unsupported"
    http_status = 501


# Exit code 3: preflight says it would fail; the guest was not touched.


class Refused(MapsaveError):
    """Preflight found a reason why the operation would fail; the guest was not touched."""

    id = "check.refused"
    exit_code = 3
    http_status = 409


class Unreachable(Refused):
    """QEMU's monitor cannot be reached, does not answer in time, or is in use by another client."""

    id = "check.unreachable"


class TooOld(Refused):
    """QEMU is older than 9.1, the first version that can save to a descriptor at an offset."""

    id = "check.too_old"


class NotMigratable(Refused):
    """QEMU names a device or state that cannot be saved (its own blocked reasons are quoted)."""

    id = "check.not_migratable"


class MissingCapability(Refused):
    """This QEMU lacks a migration capability or parameter that the save needs."""

    id = "check.capability"


class UnsafeMode(Refused):
    """QEMU is in a mode in which a save or a load would make it abort, hang or lose state."""

    id = "check.mode"


class TooLittleLeft(Refused):
    """The kernel's limits on QEMU, or on mapsave, leave too little for the save or the restore."""

    id = "check.limits"


class WrongRunState(Refused):
    """The guest is in a run state from which it cannot be saved or restored."""

    id = "check.run_state"


class QemuKeeps(Refused):
    """QEMU has not released descriptors or settings of an earlier save, and could crash in
    another one."""

    id = "check.kept_by_qemu"


class BadDirectory(Refused):
    """The image directory is gone, read-only, or cannot hold an image of that name."""

    id = "check.directory"


class NoRoom(Refused):
    """The file system has not enough free space for the image."""

    id = "check.room"


class NoDirectIO(Refused):
    """direct-io was requested, but the image's file system does not support it."""

    id = "check.direct_io"


class ImageExists(Refused):
    """An image of that name already exists, and ``--replace`` was not given."""

    id = "check.image_exists"


class DestinationMismatch(Refused):
    """The destination differs from the saved guest: machine, processors, RAM blocks or sizes."""

    id = "check.destination"


class DestinationNotZero(Refused):
    """The destination's memory has contents where the image has none; QEMU would not clear them."""

    id = "check.destination_not_zero"


class OlderQemu(Refused):
    """The destination is an older QEMU than the one that saved; ``--force`` overrides."""

    id = "check.older_qemu"


class AlreadyRestored(Refused):
    """The image has been restored before; a second restore needs ``--again``."""

    id = "check.already_restored"


class NoDestination(Refused):
    """Nothing says how to start the destination: ``launch``, ``--into`` or a trusted command."""

    id = "check.no_destination"


class JournalUnusable(Refused):
    """The step journal of an interrupted operation lacks what recovery needs to know."""

    id = "recover.journal"


class JournalLost(JournalUnusable):
    """A step journal is damaged, and nothing else shows what it was about; it is kept under
    another name."""

    id = "recover.journal_lost"


class HookRefused(Refused):
    """A hook that runs before the operation refused it, or failed; its message is quoted."""

    id = "hook.refused"


class NoTime(Refused):
    """The deadline left no time to save the guest, which was not touched."""

    id = "check.deadline"


class ServiceUnreachable(Refused):
    """The service's socket exists, but the service does not answer."""

    id = "service.unreachable"
