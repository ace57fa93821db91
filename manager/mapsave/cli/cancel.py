"""``mapsave cancel OPERATION``."""

import click
import msgspec

from mapsave import errors
from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import connection, delegate
from mapsave.service.api import responses


@click.command("cancel", cls=Command)
@click.argument("operation")
@pass_globals
def command(given: Globals, /, operation: str) -> None:
    """Cancel an operation of the service, and wait until it is rolled back.

    OPERATION is its id as 'mapsave ps' lists it, or the beginning of it.
    """
    client = hosts.needed_service(given)
    number = client.post(f"/v1/operations/{connection.quoted(operation)}/cancel")["id"]
    found = delegate.follow(client, number)
    if found["state"] == "done":
        raise errors.NotCancellable(
            f"operation {number} could not be cancelled any more: it is done"
        )
    ended = msgspec.convert(found, responses.Operation)
    words = f"operation {number} {ended.state}: {output.came_to(ended)}"
    output.result(given, found, words)
