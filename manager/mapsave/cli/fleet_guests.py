"""``mapsave fleet guests``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave.cli import fleet_options, fleet_patterns, output
from mapsave.cli.fleet_hosts import ago
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.fleet.patterns import Pattern


@click.command("guests", cls=FleetCommand)
@fleet_patterns.argument
@pass_globals
def command(given: Globals, /, pattern: Pattern) -> None:
    """List the guests of the hosts, as the agents have reported them.

    PATTERN is GUEST@HOST, such as 'web*@rack1-*'; without '@' of any host.
    """
    from mapsave.fleet import reports

    rows = fleet_options.run(
        given,
        fleet_options.settings(given),
        lambda connection: reports.guests(connection, pattern),
    )
    header = ("guest", "host", "state", "last image", "seen")
    table = output.table(map(_row, rows), header) if rows else "no guests"
    output.result(given, {"guests": [reports.plain(row) for row in rows]}, table)


def _row(row: dict[str, object]) -> tuple[str, ...]:
    facts = row["facts"] if isinstance(row["facts"], dict) else {}
    image = facts.get("last_image")
    name = image.get("name") if isinstance(image, dict) else image
    return (
        str(row["guest"]),
        str(row["host"]),
        str(facts.get("state") or "-"),
        str(name or "-"),
        ago(row["seen"]),
    )
