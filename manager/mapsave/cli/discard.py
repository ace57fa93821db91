"""``mapsave discard IMAGE``."""

from __future__ import annotations

import click

from mapsave import units
from mapsave.cli import output
from mapsave.cli.options import Command, of
from mapsave.client import connection, delegate


@click.command("discard", cls=Command)
@click.argument("image")
@click.option("--yes", is_flag=True, help="Delete an image that was never restored, too.")
@click.pass_context
def command(context: click.Context, /, image: str, yes: bool) -> None:
    """Delete an image.

    An image that was never restored is the only copy of its guest: deleting it needs --yes.
    """
    given = of(context)
    config = given.config()
    if asked := connection.image_to_ask_for(config, given, image):
        client, name = asked
        done = delegate.perform(client, {"kind": "discard", "image": name, "unrestored": yes})
    else:
        from mapsave.operations import discard, images

        done = discard.discard(config, images.resolve(image, config), unrestored=yes)
    freed = units.format_size(done["freed_bytes"])
    output.result(given, done, f"discarded {done['image']}, {freed} freed")
