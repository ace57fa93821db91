"""Nothing was touched: the request is wrong (exit code 2), or preflight refuses it (3)."""

from mapsave.errors.base import MapsaveError

# Exit code 2: the command line or a YAML file is wrong; nothing was touched.


class UsageError(MapsaveError, id="usage", exit_code=2, http_status=400):
    """The command line is wrong: an unknown option, a missing or contradictory argument."""


class ConfigError(UsageError, id="config.invalid"):
    """A YAML file (configuration, job or policy) is wrong; the message names file, line and
    nearest key."""


class ConfigMissing(UsageError, id="config.missing"):
    """A YAML file that was asked for does not exist, or its disk fails; without permission to read
    it, it is permission.denied."""


class UnknownGuest(UsageError, id="guest.unknown", http_status=404):
    """No guest of that name is configured, and it is not a ``qmp:`` or ``libvirt:`` address."""


class UnknownPolicy(UsageError, id="policy.unknown", http_status=404):
    """No label policy of that name is shipped or configured."""


class ImageNotFound(UsageError, id="image.not_found", http_status=404):
    """There is no image file at that path."""


class RequestInvalid(UsageError, id="request.invalid"):
    """A request to the service is invalid: malformed JSON, an unknown field, a wrong value."""


class RequestTooLarge(UsageError, id="request.too_large", http_status=413):
    """A request to the service is too large."""


class WrongMethod(UsageError, id="request.method", http_status=405):
    """The service has that resource, but not with that method; the message names its methods."""


class UnknownResource(UsageError, id="request.not_found", http_status=404):
    """The service has nothing at that path."""


class UnknownOperation(UsageError, id="operation.unknown", http_status=404):
    """There is no operation with that id, active or in the history."""


class UnknownJob(UsageError, id="job.unknown", http_status=404):
    """There is no job of that name in the jobs directory."""


class UnknownHost(UsageError, id="fleet.host_unknown", http_status=404):
    """The fleet has no host of that name."""


class UnknownRun(UsageError, id="fleet.run_unknown", http_status=404):
    """The fleet has no run of that number, or no task of that id, or several that begin so."""


class Unsupported(UsageError, id="unsupported", http_status=501):
    """The request is valid but this installation cannot do it; the message says what is missing."""


# Exit code 3: preflight says it would fail; the guest was not touched.


class Refused(MapsaveError, id="check.refused", exit_code=3, http_status=409):
    """Preflight found a reason why the operation would fail; the guest was not touched."""


class Unreachable(Refused, id="check.unreachable"):
    """QEMU's monitor cannot be reached, does not answer in time, or is in use by another client."""


class TooOld(Refused, id="check.too_old"):
    """QEMU is older than 9.1, the first version that can save to a descriptor at an offset."""


class NotMigratable(Refused, id="check.not_migratable"):
    """A device, job or state of the guest cannot be saved; QEMU's blocked reasons are quoted."""


class MissingCapability(Refused, id="check.capability"):
    """This QEMU lacks a migration capability or parameter that the save needs."""


class UnsafeMode(Refused, id="check.mode"):
    """QEMU is in a mode in which a save or a load would make it abort, hang or lose state."""


class TooLittleLeft(Refused, id="check.limits"):
    """The kernel's limits on QEMU, or on mapsave, leave too little for the save or the restore."""


class WrongRunState(Refused, id="check.run_state"):
    """The guest is in a run state from which it cannot be saved or restored."""


class QemuKeeps(Refused, id="check.kept_by_qemu"):
    """QEMU has not released descriptors or settings of an earlier save, and could crash in
    another one."""


class BadDirectory(Refused, id="check.directory"):
    """The image directory is gone, read-only, does not answer, or cannot hold an image of that
    name."""


class NoRoom(Refused, id="check.room"):
    """The file system has not enough free space for the image, or for its archive."""


class NoDirectIO(Refused, id="check.direct_io"):
    """direct-io was requested, but the image's file system does not support it."""


class NoCheckpoint(Refused, id="check.checkpoint"):
    """No checkpoint can be taken: the guest's RAM must be a shared file beside the images."""


class PauseTooLong(Refused, id="check.pause"):
    """The guest writes so fast that a checkpoint would pause it for longer than it may be."""


class ImageExists(Refused, id="check.image_exists"):
    """An image of that name already exists, and ``--replace`` was not given."""


class GuestSaved(Refused, id="check.guest_saved"):
    """The guest's memory is in an image that was not restored: started afresh, it would be lost."""


class DestinationMismatch(Refused, id="check.destination"):
    """The destination differs from the saved guest: machine, processors, RAM blocks or sizes."""


class DestinationNotZero(Refused, id="check.destination_not_zero"):
    """The destination's memory has contents where the image has none; QEMU would not clear them."""


class OlderQemu(Refused, id="check.older_qemu"):
    """The destination is an older QEMU than the one that saved; ``--force`` overrides."""


class AlreadyRestored(Refused, id="check.already_restored"):
    """The image has been restored before; a second restore needs ``--again``."""


class NoDescriptors(Refused, id="check.no_descriptors"):
    """No descriptors arrive at QEMU: no socket of this host leads to it, or a proxy does."""


class NoDestination(Refused, id="check.no_destination"):
    """Nothing says how to start the destination: ``launch``, ``--into`` or a trusted command."""


class NotInstant(Refused, id="check.instant"):
    """``instant: on`` was requested, but RAM cannot be mapped from the image; the message says
    why."""


class NotProvable(Refused, id="check.not_provable"):
    """The image cannot be loaded into a throwaway QEMU: the message names what has no null backend,
    or whose guest it is."""


class JournalUnusable(Refused, id="recover.journal"):
    """The step journal of an interrupted operation lacks what recovery needs to know."""


class JournalLost(JournalUnusable, id="recover.journal_lost"):
    """A step journal is damaged, and nothing else shows what it was about; it is kept under
    another name."""


class HookRefused(Refused, id="hook.refused"):
    """A hook that runs before the operation refused it, or failed; its message is quoted."""


class NotDigested(Refused, id="image.not_digested"):
    """The digests of an image's data could not be written; the image is as good as it was."""


class ExportFailed(Refused, id="export.failed"):
    """The archive could not be written: its disk fails, or its reader has ended. The image is as it
    was, and no file is left."""


class CoreFailed(Refused, id="core.failed"):
    """The core could not be written: its disk fails, or QEMU refuses. The image is as it was, and
    no file is left."""


class ImportFailed(Refused, id="import.failed"):
    """The archive could not be read, or the image not be written, by a disk that fails; nothing was
    imported."""


class NoTime(Refused, id="check.deadline"):
    """The deadline left no time to save the guest, which was not touched."""


class ServiceUnreachable(Refused, id="service.unreachable"):
    """The service's socket exists, but the service does not answer."""


# Of a fleet's database; nothing was asked of any host.


class FleetUnreachable(Refused, id="fleet.unreachable", http_status=503):
    """The fleet's database cannot be reached, or the connection to it broke; hosts go on with what
    they do."""


class FleetSchema(Refused, id="fleet.schema"):
    """The fleet's database has no schema of a fleet, an older one, or one of a newer mapsave."""


class TaskRefused(Refused, id="fleet.task"):
    """A task of the fleet asks for what its agent does on no host; nothing was begun."""


class WindowClosed(Refused, id="fleet.window"):
    """A task of the fleet had no turn before the window of its job closed; nothing was begun."""


class NoScheduler(Refused, id="fleet.no_scheduler", http_status=503):
    """No scheduler of the fleet has answered in time; the request is void."""
