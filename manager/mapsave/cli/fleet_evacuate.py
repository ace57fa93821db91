"""``mapsave fleet evacuate HOST``."""

import click

from mapsave import units
from mapsave.cli import fleet_asking, fleet_options
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.fleet_run import wait_option
from mapsave.cli.options import Globals, Parsed, pass_globals


@click.command("evacuate", cls=FleetCommand)
@click.argument("name", metavar="HOST", shell_complete=fleet_options.HOSTS)
@click.option(
    "--deadline",
    type=Parsed("duration", units.parse_duration),
    metavar="DURATION",
    help="Begin no save after that, such as 20m.",
)
@wait_option
@pass_globals
def command(given: Globals, /, name: str, deadline: float | None, wait: bool) -> int:
    """Save and shut down every guest that runs on HOST, before all other tasks.

    Saves of jobs there that have not begun are cancelled. 'mapsave fleet return' restores the
    guests.
    """
    what = {"host": name, "deadline_s": deadline}
    return fleet_asking.ask(given, "evacuate", what, wait=wait)
