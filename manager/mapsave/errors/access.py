"""The image is invalid (exit code 6), access is forbidden (7), or it is busy (8)."""

from mapsave.errors.base import MapsaveError

# Exit code 6: the image is not good.


class InvalidImage(MapsaveError, id="image.corrupt", exit_code=6, http_status=422):
    """The file is damaged: a field, checksum or structure is invalid."""


class MetadataLost(InvalidImage, id="image.metadata_lost"):
    """Both copies of an image's metadata are damaged; ``restore --without-metadata`` does without
    them."""


class NotAnImage(InvalidImage, id="image.not_an_image"):
    """The file does not begin with an image header."""


class TruncatedImage(InvalidImage, id="image.truncated"):
    """The file is shorter than its own fields say."""


class PartialImage(InvalidImage, id="image.partial"):
    """The image was never completed: a save was interrupted or is still running."""


class UnsupportedImage(InvalidImage, id="image.unsupported"):
    """The image uses a newer format or feature, which this version does not support."""


class EmptyRam(InvalidImage, id="image.empty_ram"):
    """Every page bit of the image is clear, although the guest's RAM was not empty."""


class PagesMissing(InvalidImage, id="image.pages_missing"):
    """Pages that QEMU reported as written are not in the file: the storage lost a write."""


class DataDamaged(InvalidImage, id="image.data_damaged"):
    """Data of the image is not what its digests say; the message names file offsets, RAM blocks
    and addresses."""


class DigestsDamaged(InvalidImage, id="image.digests_damaged"):
    """The digests of the image's data are damaged themselves: the data cannot be verified."""


class BadArchive(InvalidImage, id="archive.damaged"):
    """What was to be imported was not written by ``mapsave export``, is damaged, or cut short;
    nothing was imported."""


class UnreadableImage(InvalidImage, id="image.unreadable"):
    """The image cannot be read: its disk or file system fails. The image itself may be valid."""


# Exit code 7: a security module, file permissions or a policy forbid it.


class NotPermitted(MapsaveError, id="permission.denied", exit_code=7, http_status=403):
    """File permissions do not allow it; the message names what refuses, its owner and mode, and
    mapsave's own user."""


class LabelRefused(NotPermitted, id="label.refused"):
    """A security module would refuse, or refused, to give QEMU the file; the message names label
    and context."""


class PolicyViolation(NotPermitted, id="policy.violation"):
    """The label policy forbids images in that directory, or requires what cannot be applied."""


class LabelUnavailable(NotPermitted, id="label.unavailable"):
    """The policy asks for a security module that is not active on this host."""


class UntrustedImage(NotPermitted, id="image.untrusted"):
    """Others than root, mapsave's own user and the label policy's owner can write the image, or
    replace it in a directory of its path; ``--trust-image`` overrides."""


class UntrustedDirectory(NotPermitted, id="directory.untrusted"):
    """Others than root, mapsave's own user and the label policy's owner can write the image
    directory, or replace it; an image in it would not be restored."""


class ForeignResource(NotPermitted, id="image.foreign_resource"):
    """The domain XML names a program, path or device that neither the existing domain nor ``trust``
    in the configuration has; ``--trust-image`` overrides."""


class NotDecrypted(NotPermitted, id="archive.not_decrypted"):
    """The archive is encrypted, and for none of the identities that were named."""


class RoleMissing(NotPermitted, id="permission.role"):
    """The user is in none of the groups that the service allows to do this."""


class FleetDenied(NotPermitted, id="fleet.denied"):
    """The fleet's database refuses the role: its password, its certificate, or what it may do."""


class FleetForbidden(NotPermitted, id="fleet.forbidden"):
    """fleet.yaml does not allow the person to ask for that."""


# Exit code 8: another process is using it.


class Busy(MapsaveError, id="guest.busy", exit_code=8, http_status=409):
    """Another mapsave process is using the guest or the image."""


class ImageInUse(Busy, id="image.in_use"):
    """The RAM of a guest that was restored instantly is mapped from the image; ``--in-use``
    overrides."""


class AlreadyMigrating(Busy, id="guest.migrating"):
    """QEMU is already migrating or saving, for another client."""


class ServiceRunning(Busy, id="service.running"):
    """Another service is already running with this state directory or socket."""


class AgentRunning(Busy, id="fleet.agent_running"):
    """The host has another agent of its fleet, here or on another machine."""


class ServiceStopping(Busy, id="service.stopping", http_status=503):
    """The service is stopping, or has too much to do, and starts nothing new."""


class ServiceBusy(Busy, id="service.busy", http_status=503):
    """Too many requests of that kind are already waiting for the service; ask again in a moment."""


class NotCancellable(Busy, id="operation.not_cancellable"):
    """The operation has finished, or is committing its image, and can no longer be cancelled."""


class NotLeading(Busy, id="fleet.not_leading"):
    """The scheduler of the fleet does not lead any more: another one has taken over."""
