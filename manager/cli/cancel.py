"""``mapsave cancel OPERATION``."""

from __future__ import annotations

import click

from manager import errors
from manager.cli import following, output, remote
from manager.cli.options import Command, of


@click.command("cancel", cls=Command)
@click.argument("operation")
@click.pass_context
def command(context: click.Context, /, operation: str) -> None:
    """Cancel an operation of the service, and wait until everything is put back.

    OPERATION is its id as 'mapsave ps' lists it, or the beginning of it.
    """
    given = of(context)
    client = remote.needed(given, given.config())
    number = client.post(f"/v1/operations/{remote.quoted(operation)}/cancel")["id"]
    found = following.follow(client, number)
    if found["state"] == "done":
        raise errors.NotCancellable(f"operation {number} was too far to be cancelled: it is done")
    error = found["error"]
    output.result(given, found, f"operation {number} {found['state']}: {error['message']}")
