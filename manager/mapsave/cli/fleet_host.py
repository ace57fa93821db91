"""``mapsave fleet host add|remove``."""

from __future__ import annotations

from pathlib import Path

import click

from mapsave.cli import fleet_options, fleet_roles, local, output
from mapsave.cli.fleet_options import FleetCommand, FleetGroup
from mapsave.cli.options import Globals, pass_globals


@click.group("host", cls=FleetGroup)
def command() -> None:
    """Add a host to the fleet, or remove it."""


@command.command("add", cls=FleetCommand)
@click.argument("name", metavar="HOST", shell_complete=fleet_options.HOSTS)
@fleet_roles.dsn_file_option
@pass_globals
def add(given: Globals, /, name: str, dsn_file: Path | None) -> None:
    """Add HOST, and make the role that its agent connects as.

    The agent needs the connection string that is printed, in the file that 'fleet: {dsn_file:}' of
    its manager.yaml names. Of a host that there is already the password is replaced.
    """
    from mapsave.fleet import schema

    found = fleet_options.settings(given)
    # What it does at once, and where its images are, the scheduler brings in from the file.
    made = local.run(schema.add_host(found.database, name, saves=0), given)
    what = "added" if made["new"] else "replaced the password of"
    words = f"{what} host {name!r}, which connects as the role {made['role']!r}"
    fleet_roles.show(given, made, words, dsn_file)


@command.command("remove", cls=FleetCommand)
@click.argument("name", metavar="HOST", shell_complete=fleet_options.HOSTS)
@pass_globals
def remove(given: Globals, /, name: str) -> None:
    """Remove HOST and its role. What is queued for it is cancelled; its images remain."""
    from mapsave.fleet import schema

    done = local.run(schema.remove_host(fleet_options.settings(given).database, name), given)
    output.result(given, done, f"removed host {name!r}; {done['cancelled']} tasks were cancelled")
