"""``mapsave fleet cancel RUN|TASK``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave.cli import fleet_asking, fleet_options, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.reports import Row

_OPERATION = 12  # digits of the id of an operation; a run's number has fewer


@click.command("cancel", cls=FleetCommand)
@click.argument("name", metavar="RUN|TASK")
@pass_globals
def command(given: Globals, /, name: str) -> None:
    """Cancel a run, by its number, or a task, by its id or the beginning of it.

    What has not begun is cancelled at once. What runs is cancelled by its host, which rolls it
    back: 'mapsave fleet wait' waits for that.
    """

    async def work(connection: Connection) -> Row:
        return await fleet_asking.answered(connection, "cancel", await named(connection, name))

    answer = fleet_options.run(
        given, fleet_options.settings(given), work, interrupted="what was asked for goes on"
    )
    words = f"run {answer['run']}: {answer['cancelled']} tasks cancelled"
    if answer["asked"]:
        words += f", the hosts of {answer['asked']} are asked to cancel"
    output.result(given, answer, words)


async def named(connection: Connection, name: str) -> Row:
    """Return ``{"run": NUMBER}`` or ``{"task": ID}`` for what a word means. Raises UnknownRun."""
    from mapsave.fleet import reports

    if name.isascii() and name.isdigit() and len(name) < _OPERATION:
        return {"run": int(name)}
    return {"task": (await reports.one_task(connection, name))["task"]}
