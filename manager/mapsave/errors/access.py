"""The image is not good (exit code 6), or it is forbidden (7) or taken (8)."""

from __future__ import annotations

from mapsave.errors.base import MapsaveError

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


class PagesMissing(InvalidImage):
    """Pages that QEMU says it has written are not in the file: the storage did a short write."""

    id = "image.pages_missing"


class UnreadableImage(InvalidImage):
    """The image cannot be read: its disk or file system fails, which says nothing about it."""

    id = "image.unreadable"


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


class UntrustedImage(NotPermitted):
    """Others than root, mapsave's own user and the label policy's owner can write the image, or
    exchange it in a directory on the way to it; ``--trust-image`` overrides."""

    id = "image.untrusted"


class UntrustedDirectory(NotPermitted):
    """Others than root, mapsave's own user and the label policy's owner can write the directory of
    the images, or exchange it; an image in it would not be restored."""

    id = "directory.untrusted"


class ForeignResource(NotPermitted):
    """The domain XML names a program, path or device that neither the existing domain nor ``trust``
    in the configuration has; ``--trust-image`` overrides."""

    id = "image.foreign_resource"


class RoleMissing(NotPermitted):
    """The service allows that to others only: the user is in none of the groups that may."""

    id = "permission.role"


# Exit code 8: somebody else is at it.


class Busy(MapsaveError):
    """The guest or the image is in use by another mapsave."""

    id = "guest.busy"
    exit_code = 8
    http_status = 409


class AlreadyMigrating(Busy):
    """QEMU is already migrating or saving, on somebody else's behalf."""

    id = "guest.migrating"


class ServiceRunning(Busy):
    """Another service runs with this state directory or socket already."""

    id = "service.running"


class ServiceStopping(Busy):
    """The service is about to stop, or has too much to do, and begins nothing new."""

    id = "service.stopping"
    http_status = 503


class ServiceBusy(Busy):
    """Too many requests of that kind wait for the service already; ask again in a moment."""

    id = "service.busy"
    http_status = 503


class NotCancellable(Busy):
    """The operation has ended, or is committing its image, and cannot be cancelled any more."""

    id = "operation.not_cancellable"
