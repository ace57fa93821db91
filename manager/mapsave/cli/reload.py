"""``mapsave reload``."""

import click

from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("reload", cls=Command)
@pass_globals
def command(given: Globals, /) -> None:
    """Have the service reload its configuration and the jobs.

    If anything in them is wrong, nothing changes, and the error says what is wrong and where.
    """
    done = hosts.needed_service(given).post("/v1/reload")
    later = [f"{key}: takes effect only after a restart" for key in done["needs_restart"]]
    output.result(given, done, "\n".join(["configuration reloaded", *output.warnings(later)]))
