"""``mapsave events``."""

import datetime

import click

from mapsave import typed, units
from mapsave.cli import candidates, hosts, output, streams
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import exchange, responses
from mapsave.client.events import Event
from mapsave.client.exchange import Answer


@click.command("events", cls=Command)
@click.option(
    "--operation",
    metavar="OPERATION",
    help="Only events of this operation, to its end.",
    shell_complete=candidates.ACTIVE,
)
@pass_globals
def command(given: Globals, /, operation: str | None) -> None:
    """Print what happens in the service as it happens, until Ctrl-C.

    With --json it is one object a line, and how far operations are is printed as well.
    """
    client = hosts.needed_service(given)
    with client.until_interrupted():
        if operation is not None:
            operation = client.get(exchange.operation(operation))["id"]
        for event in client.events(operation):
            if not streams.is_read():
                return
            if event.kind != "idle":
                _show(given, event)


def _show(given: Globals, event: Event) -> None:
    if given.json:
        output.line(given, {"event": event.kind, "data": event.data}, "")
        return
    now = units.format_time(datetime.datetime.now())
    if event.kind == "operation":
        output.line(given, {}, f"{now}  {_operation(event.data)}")
    elif event.kind == "service":
        changes = ", ".join(key for key, is_so in event.data.items() if is_so)
        output.line(given, {}, f"{now}  service {changes}")


def _operation(found: Answer) -> str:
    each = typed.convert(found, responses.Operation)
    what = each.guest or each.job or each.image or ""
    came_to = output.came_to(each) or ("" if each.ended else each.step)
    words = " ".join(filter(None, (each.id, each.kind, what, output.state(each))))
    return f"{words}: {came_to}" if came_to else words
