"""``mapsave fleet operator add|remove``."""

from __future__ import annotations

from pathlib import Path

import click

from mapsave.cli import fleet_options, fleet_roles, local, output
from mapsave.cli.fleet_options import FleetCommand, FleetGroup
from mapsave.cli.options import Globals, pass_globals


@click.group("operator", cls=FleetGroup)
def command() -> None:
    """Add a person who may look at the fleet and ask for runs, or remove one."""


@command.command("add", cls=FleetCommand)
@click.argument("role")
@fleet_roles.dsn_file_option
@pass_globals
def add(given: Globals, /, role: str, dsn_file: Path | None) -> None:
    """Let the database role ROLE look at the fleet and ask for runs.

    A role that does not exist is made, with a password; the connection string is printed. What it
    may ask for 'may:' of fleet.yaml says.
    """
    from mapsave.fleet import schema

    made = local.run(schema.add_person(fleet_options.settings(given).database, role), given)
    fleet_roles.show(given, made, f"the role {role!r} is an operator of the fleet", dsn_file)


@command.command("remove", cls=FleetCommand)
@click.argument("role")
@pass_globals
def remove(given: Globals, /, role: str) -> None:
    """Take from ROLE what 'operator add' gave it; the role itself remains."""
    from mapsave.fleet import schema

    done = local.run(schema.remove_person(fleet_options.settings(given).database, role), given)
    output.result(given, done, f"the role {role!r} is not an operator of the fleet any more")
