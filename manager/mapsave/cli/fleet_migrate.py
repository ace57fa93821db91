"""``mapsave fleet migrate``."""

import click

from mapsave.cli import fleet_options, local, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals


@click.command("migrate", cls=FleetCommand)
@pass_globals
def command(given: Globals, /) -> None:
    """Upgrade the schema of the fleet to that of this mapsave, all of it or nothing.

    After a restore of the database it sets again who may do what in it.
    """
    from mapsave.fleet import schema

    found = fleet_options.settings(given)
    done = local.run(schema.migrate(found.database), given)
    words = f"the fleet in the database {done['database']!r} has schema {done['schema']}"
    output.result(given, done, f"{words}, Procrastinate's of {done['procrastinate']}")
