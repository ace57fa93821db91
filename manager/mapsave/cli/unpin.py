"""``mapsave unpin IMAGE...``."""

import click

from mapsave.cli import output, several
from mapsave.cli.here import Result
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("unpin", cls=Command)
@several.images_argument
@pass_globals
def command(given: Globals, /, images: tuple[str, ...]) -> int:
    """Let pinned images be deleted and replaced again.

    Exits with the code of the first image that could not be unpinned.
    """
    return several.report(given, images, lambda host, name: host.unpin(name), several.lines(_line))


def _line(done: Result) -> str:
    outcome = output.described(done["error"]) if "error" in done else "not pinned any more"
    return f"{done['image']}: {outcome}"
