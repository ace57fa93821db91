"""Which image a save may replace: none that is pinned or in use, nor any guest's for all users."""

import os
from pathlib import Path

from mapsave import errors
from mapsave.image import image, store
from mapsave.operations import in_use, pins
from mapsave.operations.save_request import Request


def check(
    state: Path, held: store.Directory, name: str, request: Request, qemu: tuple[int, int] | None
) -> None:
    """Raise ImageExists or ImageInUse where what is called ``name`` must not be replaced.

    A guest that lives on it and quits after the save, ``qemu`` (pid, start time), is no obstacle.
    Raises Refused, NotPermitted.
    """
    pins.refuse_replacing(state, held, name)
    if not request.in_use:
        ends = qemu if request.settings.then == "quit" else None
        in_use.check_replacing(state, held, name, but=ends)
    only_own(held, name, request.replace_only)


def only_own(held: store.Directory, name: str, guest: str | None) -> None:
    """Raise ImageExists where ``name`` is an image of another guest than ``guest`` (None: any)."""
    path = os.path.join(held.path, name)
    if guest is None:
        return
    try:
        with image.opened(path) as found:
            owner = str(found.metadata.get("guest", {}).get("name"))
    except errors.UnreadableImage:
        raise
    except errors.MapsaveError:
        return  # there is none, or it is damaged
    if owner != guest:
        raise errors.ImageExists(
            f"{path!r} is an image of another guest, {owner!r}, which only an admin may replace",
            hint="choose another name",
        )
