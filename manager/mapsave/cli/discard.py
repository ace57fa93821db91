"""``mapsave discard IMAGE``."""

import click

from mapsave import units
from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("discard", cls=Command)
@click.argument("image")
@click.option("--yes", is_flag=True, help="Delete an image that was never restored, too.")
@pass_globals
def command(given: Globals, /, image: str, yes: bool) -> None:
    """Delete an image.

    Deleting an image that was never restored needs --yes: it is the only copy of its guest, if that
    was shut down after the save.
    """
    done = hosts.choose(given, given.config(), image=image).discard(image, unrestored=yes)
    freed = units.format_size(done["freed_bytes"])
    output.result(given, done, f"discarded {done['image']}, {freed} freed")
