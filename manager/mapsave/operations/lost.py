"""The restore of an image whose metadata are lost: by its stream, and by what the user says."""

from mapsave import errors
from mapsave.image.image import Image
from mapsave.operations.restore_request import Request


def check(opened: Image, request: Request) -> None:
    """Raise NoDestination where nothing says which guest the image is of."""
    if opened.libvirt is None and request.into is None and request.guest is None:
        raise errors.NoDestination(
            f"{opened.path!r} does not say which guest it is of: its metadata are damaged",
            hint="use --guest NAME, or --into qmp:PATH",
        )


def not_compared(opened: Image, *, runs: bool) -> list[str]:
    """Return warnings of what the metadata would have shown.

    Machine type, page size and RAM blocks are in the stream, and are compared as ever.
    """
    missing = ["the version of QEMU", "the digest of the stream", "changes of the guest's disks"]
    if opened.libvirt is not None:
        missing.append("the digest of libvirt's header and the domain XML")
    found = [f"without metadata, these were not compared: {', '.join(missing)}"]
    if not runs and opened.libvirt is None:
        found.append(
            "it is not known whether the guest ran when it was saved: it is paused; resume it, "
            "or restore with --run"
        )
    return found
