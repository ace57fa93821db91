"""``mapsave logs OPERATION``."""

from __future__ import annotations

import json

import click
import msgspec

from mapsave.cli import hosts, output
from mapsave.cli.options import Command, of
from mapsave.client import connection
from mapsave.service.api import responses


@click.command("logs", cls=Command)
@click.argument("operation")
@click.pass_context
def command(context: click.Context, /, operation: str) -> None:
    """Show the steps of an operation of the service, with their times."""
    given = of(context)
    client = hosts.needed_service(given)
    found = client.get(f"/v1/operations/{connection.quoted(operation)}/steps")
    output.result(given, found, text(msgspec.convert(found, responses.Steps)))


def text(found: responses.Steps) -> str:
    """Return the steps for people, the outcome last."""
    of_it = found.operation
    what = of_it.guest or of_it.job or of_it.image or ""
    lines = [f"{_time(of_it.created)}  {of_it.kind} {what}, requested by {of_it.user}"]
    for each in found.steps:
        data = json.dumps(each.data, ensure_ascii=False, default=str) if each.data else ""
        lines.append(f"{_time(each.time)}  {each.step}  {data}".rstrip())
    if of_it.ended:
        words = f": {output.described(of_it.error)}" if of_it.error else ""
        lines.append(f"{_time(of_it.ended)}  {of_it.state}{words}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{output.moment(seconds)}.{int(seconds % 1 * 1000):03d}"
