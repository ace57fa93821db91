"""``mapsave fleet schema``."""

import json

import click

from mapsave.cli import output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals


@click.command("schema", cls=FleetCommand)
@pass_globals
def command(_: Globals, /) -> None:
    """Print the JSON Schema of fleet.yaml, for editors."""
    from mapsave.fleet import settings

    output.say(json.dumps(settings.schema(), indent=2) + "\n")
