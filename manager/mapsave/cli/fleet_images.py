"""``mapsave fleet images``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave import units
from mapsave.cli import fleet_options, fleet_patterns, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.fleet.patterns import Pattern


@click.command("images", cls=FleetCommand)
@fleet_patterns.argument
@pass_globals
def command(given: Globals, /, pattern: Pattern) -> None:
    """List the images of the hosts, as the agents have reported them.

    PATTERN is GUEST@HOST, such as 'web*@rack1-*'; without '@' of any host.
    """
    from mapsave.fleet import reports

    rows = fleet_options.run(
        given,
        fleet_options.settings(given),
        lambda connection: reports.images(connection, pattern),
    )
    header = ("host", "guest", "state", "saved", "on disk", "image")
    table = output.table(map(_row, rows), header) if rows else "no images"
    output.result(given, {"images": [reports.plain(row) for row in rows]}, table)


def _row(row: dict[str, object]) -> tuple[str, ...]:
    facts = row["facts"] if isinstance(row["facts"], dict) else {}
    size = facts.get("allocated_bytes")
    return (
        str(row["host"]),
        str(row["guest"] or "-"),
        str(facts.get("state") or "-"),
        str(facts.get("saved") or "-"),
        units.format_size(size) if isinstance(size, int | float) else "-",
        str(row["image"]),
    )
