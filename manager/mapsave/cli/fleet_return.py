"""``mapsave fleet return HOST``."""

import click

from mapsave.cli import fleet_asking, fleet_options
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.fleet_run import wait_option
from mapsave.cli.options import Globals, pass_globals


@click.command("return", cls=FleetCommand)
@click.argument("name", metavar="HOST", shell_complete=fleet_options.HOSTS)
@wait_option
@pass_globals
def command(given: Globals, /, name: str, wait: bool) -> int:
    """Restore on HOST what its evacuations have saved and no one has restored since."""
    return fleet_asking.ask(given, "return", {"host": name}, wait=wait)
