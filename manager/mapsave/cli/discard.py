"""``mapsave discard IMAGE...``."""

import click

from mapsave import units
from mapsave.cli import output, several
from mapsave.cli.here import Result
from mapsave.cli.hosts import Host
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("discard", cls=Command)
@several.images_argument
@click.option("--yes", is_flag=True, help="Delete images that were never restored, too.")
@click.option("--in-use", is_flag=True, help="Delete images that guests live on, too.")
@pass_globals
def command(given: Globals, /, images: tuple[str, ...], yes: bool, in_use: bool) -> int:
    """Delete images.

    Deleting an image that was never restored needs --yes: it is the only copy of its guest, if that
    was shut down after the save. With --in-use an image loses its name though the RAM of a running
    guest is mapped from it; its space is freed when that guest quits. An image that cannot be
    deleted does not stop the others. Exits with the code of the first that was not deleted.
    """

    def work(host: Host, name: str) -> Result:
        return host.discard(name, unrestored=yes, in_use=in_use)

    return several.report(given, images, work, several.lines(_line))


def _line(done: Result) -> str:
    if "error" in done:
        return f"{done['image']}: NOT DELETED: {output.described(done['error'])}"
    if done.get("note"):
        return f"discarded {done['image']}: {done['note']}"
    freed, shared = (units.format_size(done[key]) for key in ("freed_bytes", "shared_bytes"))
    stays = f", {shared} stay: other files share them" if done["shared_bytes"] else ""
    return f"discarded {done['image']}, {freed} freed{stays}"
