"""Look into an image, through the service where the image is one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapsave.client import connection, delegate

if TYPE_CHECKING:
    from mapsave.cli.options import Globals
    from mapsave.config import Config


def inspect(given: Globals, config: Config, image: str) -> dict[str, Any]:
    """Return what an image holds. Raises as ``operations.inspect.inspect`` does."""
    if asked := connection.image_to_ask_for(config, given, image):
        client, name = asked
        return client.get(f"/v1/images/{connection.quoted(name)}")
    from mapsave.operations import images, inspect

    return inspect.inspect(images.resolve(image, config), config)


def verify(given: Globals, config: Config, image: str) -> dict[str, Any]:
    """Return the proof that an image is whole. Raises as ``operations.inspect.verify`` does."""
    if asked := connection.image_to_ask_for(config, given, image):
        client, name = asked
        return delegate.perform(client, {"kind": "verify", "image": name})
    from mapsave.operations import images, inspect

    return inspect.verify(images.resolve(image, config), config).as_dict()
