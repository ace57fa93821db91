"""The images of a directory, as ``mapsave list --json`` and the service tell of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapsave.image import store
from mapsave.operations import trust

if TYPE_CHECKING:
    import uuid as uuids
    from collections.abc import Container

    from mapsave.image.store import Directory, Entry


def listing(held: Directory, restored: Container[uuids.UUID] = frozenset()) -> dict[str, Any]:
    """Return the directory's path and a line for each image, newest first.

    ``restored``: as ``store.entries`` has it.
    """
    found = store.entries(held, trust.users(), restored)
    return {"directory": held.path, "images": [line(entry) for entry in found]}


def line(entry: Entry) -> dict[str, Any]:
    """Return what is told of one image; times in seconds since the epoch, sizes in bytes."""
    return {
        "image": entry.path,
        "name": entry.name,
        "guest": entry.guest,
        "job": entry.metadata.get("job"),
        "state": entry.state,
        "format": entry.format,
        "started": entry.metadata.get("started"),
        "modified": entry.modified,
        "file_bytes": entry.file_bytes,
        "allocated_bytes": entry.allocated_bytes,
        "writable_by": list(entry.writable_by),
        "error": entry.error.as_dict() if entry.error else None,
    }
