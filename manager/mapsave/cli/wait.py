"""``mapsave wait OPERATION...``."""

from __future__ import annotations

import click

from mapsave.cli import hosts, local, output
from mapsave.cli.options import Command, of
from mapsave.client import connection, delegate


@click.command("wait", cls=Command)
@click.argument("operations", nargs=-1, required=True, metavar="OPERATION...")
@click.pass_context
def command(context: click.Context, /, operations: tuple[str, ...]) -> int:
    """Wait until operations of the service have finished.

    Exits with the code of the first operation that failed.
    """
    given = of(context)
    client = hosts.needed_service(given)
    found, code = [], 0
    for name in operations:
        number = client.get(f"/v1/operations/{connection.quoted(name)}")["id"]
        with local.reporting(given, f"operation {number}") as report:
            ended = delegate.follow(client, number, report)
        found.append(ended)
        code = code or _code(ended)
    lines = (
        f"operation {each['id']} {each['state']}"
        + (f": {each['error']['message']} [{each['error']['id']}]" if each["error"] else "")
        for each in found
    )
    output.result(given, {"operations": found}, "\n".join(lines))
    return code


def _code(ended: dict[str, object]) -> int:
    error, result = ended["error"], ended["result"]
    if isinstance(error, dict):
        return int(error["exit_code"])
    return int(result.get("exit_code", 0)) if isinstance(result, dict) else 0
