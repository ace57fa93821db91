"""The images of a directory: their paths, and what ``mapsave list --json`` and the service say."""

from __future__ import annotations

import os
from typing import TypedDict

from mapsave.config import Config
from mapsave.image import store
from mapsave.operations import image_index, restored_notes, trust
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


def listing(held: store.Directory, config: Config) -> Listing:
    """Return the directory and a line for each image, newest first; see ``store.entries``."""
    found = image_index.look(held, config.state, trust.users())
    noted = restored_notes.noted(config.state)
    return {"directory": held.path, "images": [found.line(each, noted) for each in found.listed]}
