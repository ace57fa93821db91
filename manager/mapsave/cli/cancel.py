"""``mapsave cancel OPERATION``."""

import click

from mapsave import errors, typed
from mapsave.cli import candidates, hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import delegate, responses


@click.command("cancel", cls=Command)
@click.argument("operation", shell_complete=candidates.ACTIVE)
@pass_globals
def command(given: Globals, /, operation: str) -> None:
    """Cancel an operation of the service, and wait until it is rolled back.

    OPERATION is its id as 'mapsave ps' lists it, or the beginning of it.
    """
    client = hosts.needed_service(given)
    number = client.call(delegate.cancel(operation))["id"]
    found = client.follow(number)
    if found["state"] == "done":
        raise errors.NotCancellable(
            f"operation {number} could not be cancelled any more: it is done"
        )
    ended = typed.convert(found, responses.Operation)
    words = f"operation {number} {ended.state}: {output.came_to(ended)}"
    output.result(given, found, words)
