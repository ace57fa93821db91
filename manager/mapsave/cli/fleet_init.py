"""``mapsave fleet init``."""

import click

from mapsave.cli import fleet_options, local, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals


@click.command("init", cls=FleetCommand)
@pass_globals
def command(given: Globals, /) -> None:
    """Make the schema of a fleet in the database that fleet.yaml names.

    The database must exist, and have no other use: who is not of the fleet may not connect to it
    any more. Its owner makes the schema, a role with CREATEROLE that is not a superuser.
    """
    from mapsave.fleet import schema

    found = fleet_options.settings(given)
    made = local.run(schema.init(found.database), given)
    output.result(given, made, f"made the fleet in the database {made['database']!r}")
