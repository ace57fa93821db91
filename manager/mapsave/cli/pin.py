"""``mapsave pin IMAGE...``."""

import click

from mapsave.cli import output, several
from mapsave.cli.here import Result
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("pin", cls=Command)
@several.images_argument
@pass_globals
def command(given: Globals, /, images: tuple[str, ...]) -> int:
    """Keep images: retention, 'mapsave discard' and saves with --replace leave them alone.

    The pin is recorded in the state directory, by the image's uuid: it holds for its copies too.
    Exits with the code of the first image that could not be pinned.
    """
    return several.report(given, images, lambda host, name: host.pin(name), several.lines(_line))


def _line(done: Result) -> str:
    outcome = output.described(done["error"]) if "error" in done else "pinned"
    return f"{done['image']}: {outcome}"
