"""The image is invalid (exit code 6), access is forbidden (7), or it is busy (8)."""

from __future__ import annotations

from mapsave.errors.base import MapsaveError

# Exit code 6: the image is not good.


class InvalidImage(MapsaveError):
    """The file is damaged: a field, checksum or structure is invalid."""

    id = "image.corrupt"
    exit_code = 6
    http_status = 422


class NotAnImage(InvalidImage):
    """The file does not begin with an image header."""

    id = "image.not_an_image"


class TruncatedImage(InvalidImage):
    """The file is shorter than its own fields say."""

    id = "image.truncated"


class PartialImage(InvalidImage):
    """The image was never completed: a save was interrupted or is still running."""

    id = "image.partial"


class UnsupportedImage(InvalidImage):
    """The image uses a newer format or feature, which this version does not support."""

    id = "image.unsupported"


class EmptyRam(InvalidImage):
    """Every page bit of the image is clear, although the guest's RAM was not empty."""

    id = "image.empty_ram"


class PagesMissing(InvalidImage):
    """Pages that QEMU reported as written are not in the file: the storage lost a write."""

    id = "image.pages_missing"


class UnreadableImage(InvalidImage):
    """The image cannot be read: its disk or file system fails. The image itself may be valid."""

    id = "image.unreadable"


# Exit code 7: a security module, file permissions or a policy forbid it.


class NotPermitted(MapsaveError):
    """File permissions do not allow it; the message names path, owner and mode."""

    id = "permission.denied"
    exit_code = 7
    http_status = 403


class LabelRefused(NotPermitted):
    """A security module would refuse, or refused, to give QEMU the file; the message names label
    and context."""

    id = "label.refused"


class PolicyViolation(NotPermitted):
    """The label policy forbids images in that directory, or requires what cannot be applied."""

    id = "policy.violation"


class LabelUnavailable(NotPermitted):
    """The policy asks for a security module that is not active on this host."""

    id = "label.unavailable"


class UntrustedImage(NotPermitted):
    """Others than root, mapsave's own user and the label policy's owner can write the image, or
    replace it in a directory of its path; ``--trust-image`` overrides."""

    id = "image.untrusted"


class UntrustedDirectory(NotPermitted):
    """Others than root, mapsave's own user and the label policy's owner can write the image
    directory, or replace it; an image in it would not be restored."""

    id = "directory.untrusted"


class ForeignResource(NotPermitted):
    """The domain XML names a program, path or device that neither the existing domain nor ``trust``
    in the configuration has; ``--trust-image`` overrides."""

    id = "image.foreign_resource"


class RoleMissing(NotPermitted):
    """The user is in none of the groups that the service allows to do this."""

    id = "permission.role"


# Exit code 8: another process is using it.


class Busy(MapsaveError):
    """Another mapsave process is using the guest or the image."""

    id = "guest.busy"
    exit_code = 8
    http_status = 409


class AlreadyMigrating(Busy):
    """QEMU is already migrating or saving, for another client."""

    id = "guest.migrating"


class ServiceRunning(Busy):
    """Another service is already running with this state directory or socket."""

    id = "service.running"


class ServiceStopping(Busy):
    """The service is stopping, or has too much to do, and starts nothing new."""

    id = "service.stopping"
    http_status = 503


class ServiceBusy(Busy):
    """Too many requests of that kind are already waiting for the service; ask again in a moment."""

    id = "service.busy"
    http_status = 503


class NotCancellable(Busy):
    """The operation has finished, or is committing its image, and can no longer be cancelled."""

    id = "operation.not_cancellable"
