"""``mapsave import FILE|-``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mapsave import units
from mapsave.cli import output, reporting
from mapsave.cli.options import Globals, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.importing import Imported


@click.command("import", cls=LocalCommand)
@click.argument("archive", type=click.Path(), metavar="FILE|-")
@click.option(
    "-o",
    "--image",
    "name",
    metavar="NAME",
    help="Name or path of the image; by default the name that it had.",
)
@click.option(
    "-i",
    "--identity",
    "identities",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Decrypt it with the identities of age in a file, or a private SSH key; may be repeated.",
)
@pass_globals
def command(given: Globals, /, archive: str, name: str | None, identities: tuple[str, ...]) -> None:
    """Import an image that 'mapsave export' wrote, from a file or standard input (-).

    It has its name only once all of it is there, every digest is right, and it is valid. No image
    is replaced. It is written by this command, not by the service. Import only what you
    trust: it counts as saved here.
    """
    from mapsave.archive import keys
    from mapsave.cli import local
    from mapsave.operations import importing

    request = importing.Request(archive, name, keys.identities(identities))
    with reporting.reporting(given, "importing", os.path.basename(archive)) as report:
        done = local.run(importing.import_(given.config(), request, report), given)
    lines = [_line(done), *output.warnings(done["warnings"])]
    output.result(given, done, "\n".join(lines))


def _line(done: Imported) -> str:
    whose = f" of guest {done['guest']!r}" if done["guest"] else ""
    return (
        f"imported {done['image']}{whose}, {done['state']}, "
        f"{units.format_size(done['data_bytes'])} of data, in "
        f"{units.format_duration(done['duration_s'])}"
    )
