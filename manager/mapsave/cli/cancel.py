"""``mapsave cancel OPERATION``."""

from __future__ import annotations

import click

from mapsave import errors
from mapsave.cli import hosts, output
from mapsave.cli.options import Command, of
from mapsave.client import connection, delegate


@click.command("cancel", cls=Command)
@click.argument("operation")
@click.pass_context
def command(context: click.Context, /, operation: str) -> None:
    """Cancel an operation of the service, and wait until it is rolled back.

    OPERATION is its id as 'mapsave ps' lists it, or the beginning of it.
    """
    given = of(context)
    client = hosts.needed_service(given)
    number = client.post(f"/v1/operations/{connection.quoted(operation)}/cancel")["id"]
    found = delegate.follow(client, number)
    if found["state"] == "done":
        raise errors.NotCancellable(
            f"operation {number} could not be cancelled any more: it is done"
        )
    words = f"operation {number} {found['state']}: {found['error']['message']}"
    output.result(given, found, words)
