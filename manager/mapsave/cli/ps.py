"""``mapsave ps``: the operations of the service."""

import sys
import time
from typing import Any

import click

from mapsave import typed, units
from mapsave.cli import candidates, hosts, output, streams
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.cli.service_client import ServiceClient
from mapsave.client import responses
from mapsave.client.exchange import Answer

_EACH = 1.0  # seconds
_CLEAR = "\x1b[H\x1b[J"  # ECMA-48: CUP, ED


@click.command("ps", cls=Command)
@click.option("--all", "-a", "ended", is_flag=True, help="Include finished operations.")
@click.option(
    "--guest",
    metavar="GUEST",
    help="Only operations on this guest.",
    shell_complete=candidates.GUESTS,
)
@click.option(
    "--job",
    metavar="JOB",
    help="Only operations of this job.",
    shell_complete=candidates.JOB_NAMES,
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many."
)
@click.option("--watch", "-w", is_flag=True, help="List them again each second, until Ctrl-C.")
@pass_globals
def command(given: Globals, /, ended: bool, watch: bool, **wanted: Any) -> None:
    """List the operations of the service that are under way, newest first.

    With --watch, --json prints one object a line, each time that something has changed.
    """
    client = hosts.needed_service(given)
    wanted["active"] = None if ended else "true"
    if watch:
        with client.until_interrupted():
            _watch(given, client, wanted)
        return
    found = client.get("/v1/operations", **wanted)
    output.result(given, found, text(_operations(found)))
    for reason in client.get("/v1/health")["reasons"]:
        click.echo(f"the service is degraded: {reason}", err=True)


def _watch(given: Globals, client: ServiceClient, wanted: dict[str, Any]) -> None:
    """Print the list in place of the one before on a terminal, elsewhere where it has changed."""
    before = None
    clear = _CLEAR if sys.stdout.isatty() else ""
    while streams.is_read():
        found = client.get("/v1/operations", **wanted)
        if found != before or (clear and not given.json):
            output.say("" if given.json else clear)
            output.line(given, found, text(_operations(found)))
        before = found
        time.sleep(_EACH)


def _operations(found: Answer) -> list[responses.Operation]:
    return typed.convert(found, responses.Operations).operations


def text(operations: list[responses.Operation]) -> str:
    """Return a table of operations for people."""
    header = ("operation", "kind", "guest", "state", "since", "time", "how far")
    return output.table(map(_row, operations), header) if operations else "no operations"


def _row(each: responses.Operation) -> tuple[str, ...]:
    begun = each.started or each.created
    return (
        each.id,
        each.kind,
        each.guest or each.job or "-",
        output.state(each),
        units.format_time(begun),
        output.since(begun, each.ended),
        _how_far(each),
    )


def _how_far(each: responses.Operation) -> str:
    if came_to := output.came_to(each):
        return came_to
    if (now := each.progress) is None:
        return each.image or each.step or ""
    if not now.total_bytes:
        return now.phase
    size = units.format_size
    return f"{now.phase}: {size(now.done_bytes)} of {size(now.total_bytes)}"
