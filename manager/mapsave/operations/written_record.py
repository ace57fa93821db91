"""What is known later of the pages that QEMU wrote: by the metadata, and by the file's holes."""

from __future__ import annotations

from mapsave.image import holes
from mapsave.image.image import Image
from mapsave.image.metadata import WrittenPart
from mapsave.image.validation import Contents


def warnings(opened: Image, contents: Contents) -> list[str]:
    """Return what speaks against the image: set pages that are in holes now. Raises TruncatedImage.

    No error: a sparse copy makes holes of zeros, and a save may not have looked.
    """
    try:
        if not holes.are_known(opened.fd, opened.size):
            return []
        found = holes.find(opened.fd, contents.stream)
    except OSError:
        return []
    if found is None:
        return []
    record = opened.metadata.get("written")
    if record is not None and record.get("holes") == "checked":
        why = "they were data when it was saved; a sparse copy turns zeros into holes"
    else:
        why = "its save did not check that they were written"
    return [
        f"{opened.path!r}: {found.pages} used pages are in holes of the file and read as zeros, "
        f"the first of them page {found.page} of RAM block {found.block!r}: {why}"
    ]


def text(record: WrittenPart | None) -> str:
    """Return the record in words."""
    if record is None:
        return "not recorded whether every used page is in data"
    where = "every used page is in data" if record.get("holes") == "checked" else "holes unknown"
    compared, left = record.get("compared"), record.get("not_compared")
    rest = f", {left} not: {record.get('reason')}" if left else ""
    return f"{where}; {compared} ends of writes compared with the guest's RAM{rest}"
