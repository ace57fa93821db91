"""``mapsave fleet``: many hosts."""

import click

from mapsave.cli import options

# By the command's name: its module, and the first line of its help.
COMMANDS = {
    "agent": ("mapsave.cli.fleet_agent", "Do what the fleet asks of this host."),
}


@click.group("fleet", cls=options.Group, lazy=COMMANDS)
def command() -> None:
    """Work with many hosts that share a database, as fleet.yaml says."""
