"""``mapsave wait OPERATION...``."""

import click
import msgspec

from mapsave.cli import hosts, local, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import connection, delegate
from mapsave.service.api import responses


@click.command("wait", cls=Command)
@click.argument("operations", nargs=-1, required=True, metavar="OPERATION...")
@pass_globals
def command(given: Globals, /, operations: tuple[str, ...]) -> int:
    """Wait until operations of the service have finished.

    Exits with the code of the first operation that failed.
    """
    client = hosts.needed_service(given)
    found, code = [], 0
    for name in operations:
        number = client.get(f"/v1/operations/{connection.quoted(name)}")["id"]
        with local.reporting(given, f"operation {number}") as report:
            ended = delegate.follow(client, number, report)
        found.append(ended)
        code = code or (ended["error"] or ended["result"] or {}).get("exit_code", 0)
    lines = map(_line, msgspec.convert(found, list[responses.Operation]))
    output.result(given, {"operations": found}, "\n".join(lines))
    return code


def _line(each: responses.Operation) -> str:
    came_to = output.came_to(each)
    return f"operation {each.id} {output.state(each)}" + (f": {came_to}" if came_to else "")
