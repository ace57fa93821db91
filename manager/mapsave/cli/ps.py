"""``mapsave ps``: the operations of the service."""

import time

import click
import msgspec

from mapsave import units
from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.service.api import responses


@click.command("ps", cls=Command)
@click.option("--all", "-a", "ended", is_flag=True, help="Include finished operations.")
@click.option("--guest", metavar="GUEST", help="Only operations on this guest.")
@click.option("--job", metavar="JOB", help="Only operations of this job.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@pass_globals
def command(given: Globals, /, ended: bool, guest: str | None, job: str | None, limit: int) -> None:
    """List the operations of the service that are under way, newest first."""
    client = hosts.needed_service(given)
    active = None if ended else "true"
    wanted = {"active": active, "guest": guest, "job": job, "limit": limit}
    found = client.get("/v1/operations", **wanted)
    header = ("operation", "kind", "guest", "state", "since", "time", "how far")
    rows = [_row(each) for each in msgspec.convert(found, responses.Operations).operations]
    output.result(given, found, output.table(rows, header) if rows else "no operations")
    for problem in client.get("/v1/health").get("problems", ()):
        click.echo(f"the service is degraded: {problem}", err=True)


def _row(each: responses.Operation) -> tuple[str, ...]:
    begun = each.started or each.created
    seconds = (each.ended or time.time()) - begun
    return (
        each.id,
        each.kind,
        each.guest or each.job or "-",
        output.state(each),
        output.moment(begun),
        units.format_duration(max(seconds, 0)),
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
