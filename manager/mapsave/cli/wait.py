"""``mapsave wait OPERATION...``."""

import click

from mapsave import typed
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import exchange, responses


@click.command("wait", cls=Command)
@click.argument(
    "operations",
    nargs=-1,
    required=True,
    metavar="OPERATION...",
    shell_complete=candidates.ACTIVE,
)
@pass_globals
def command(given: Globals, /, operations: tuple[str, ...]) -> int:
    """Wait until operations of the service have finished.

    Exits with the code of the first operation that failed.
    """
    client = hosts.needed_service(given)
    found, code = [], 0
    for name in operations:
        number = client.get(exchange.operation(name))["id"]
        with reporting.reporting(given, "operation", number) as report:
            ended = client.follow(number, report)
        found.append(ended)
        code = code or (ended["error"] or ended["result"] or {}).get("exit_code", 0)
    lines = map(_line, typed.convert(found, list[responses.Operation]))
    output.result(given, {"operations": found}, "\n".join(lines))
    return code


def _line(each: responses.Operation) -> str:
    came_to = output.came_to(each)
    return f"operation {each.id} {output.state(each)}" + (f": {came_to}" if came_to else "")
