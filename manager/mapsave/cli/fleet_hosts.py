"""``mapsave fleet hosts``."""

import datetime

import click

from mapsave import units
from mapsave.cli import fleet_options, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals
from mapsave.jobs.outcome import Level


@click.command("hosts", cls=FleetCommand)
@pass_globals
def command(given: Globals, /) -> None:
    """List the hosts: when each was heard of last, and what it does.

    A host is 'silent' whose agent has said nothing for longer than 'silent_after' in fleet.yaml;
    what it runs goes on.
    """
    from mapsave.fleet import reports

    found = fleet_options.settings(given)
    rows = fleet_options.run(
        given, found, lambda connection: reports.hosts(connection, found.silent_after)
    )
    shown = [{**reports.plain(row), "state": state(row)} for row in rows]
    output.result(given, {"hosts": shown}, text(rows))


def state(row: dict[str, object]) -> str:
    """Return in a word how a host is: ok, silent, or what its agent says of its service."""
    service = row["service"]
    if row["last_word"] is None:
        return "never heard of"
    if row["is_silent"]:
        return "silent"
    if isinstance(service, dict) and not service.get("reachable", True):
        return "without service"
    status = service.get("status") if isinstance(service, dict) else None
    return str(status or "ok")


def text(rows: list[dict[str, object]]) -> str:
    """Return the hosts as a table for people."""
    header = ("host", "state", "last word", "target", "running", "queued", "guests", "version")
    return output.table(map(_row, rows), header) if rows else "no hosts"


def _row(row: dict[str, object]) -> tuple[str, ...]:
    said = state(row)
    return (
        str(row["host"]),
        said if said == "ok" else output.marked(Level.WARNING, said),
        ago(row["last_word"]),
        str(row["target"] or "-"),
        f"{row['running']} of {row['saves']}",
        str(row["queued"]),
        str(row["guests"]),
        str(row["version"] or "-"),
    )


def ago(when: object) -> str:
    """Return how long ago something was; a dash where it never was."""
    if not isinstance(when, datetime.datetime):
        return "-"
    return units.format_ago((datetime.datetime.now(datetime.UTC) - when).total_seconds())
