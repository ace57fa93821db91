"""The images of a directory: their paths, and what ``mapsave list --json`` and the service say."""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Container
from typing import TypedDict

from mapsave.config import Config
from mapsave.image import store
from mapsave.operations import trust
from mapsave.strict_json import Facts


def resolve(name: str, config: Config) -> str:
    """Return the path of an image given as a path, or as a name in the image directory."""
    if "/" in name or os.path.lexists(name):
        return os.path.abspath(name)
    return str(config.images / name)


class Listing(TypedDict):
    """The images of a directory."""

    directory: str
    images: list[Facts]


def listing(held: store.Directory, restored: Container[uuids.UUID] = frozenset()) -> Listing:
    """Return the directory and a line for each image, newest first; see ``store.entries``."""
    found = store.entries(held, trust.users(), restored)
    lines: list[Facts] = [
        {
            "image": entry.path,
            "name": entry.name,
            "guest": entry.guest,
            "job": entry.metadata.get("job"),
            "state": entry.state,
            "format": entry.format,
            "started": entry.metadata.get("started"),
            "modified": entry.modified,  # seconds since the epoch
            "file_bytes": entry.file_bytes,
            "allocated_bytes": entry.allocated_bytes,
            "writable_by": list(entry.writable_by),
            "error": entry.error.as_dict() if entry.error else None,
        }
        for entry in found
    ]
    return {"directory": held.path, "images": lines}
