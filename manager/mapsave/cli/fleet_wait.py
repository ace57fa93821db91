"""``mapsave fleet wait RUN|TASK...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave.cli import fleet_asking, fleet_cancel, fleet_options, fleet_ps, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals
from mapsave.jobs import outcome

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.reports import Row

_EACH = 0.5  # seconds


@click.command("wait", cls=FleetCommand)
@click.argument("names", nargs=-1, required=True, metavar="RUN|TASK...")
@pass_globals
def command(given: Globals, /, names: tuple[str, ...]) -> int:
    """Wait until runs or tasks have ended.

    Exits with the worst code of all their tasks. On a terminal it shows how far they are.
    """

    async def work(connection: Connection) -> tuple[list[Row], list[Row]]:
        known = [await fleet_cancel.named(connection, name) for name in names]
        runs = [each["run"] for each in known if "run" in each]
        followed = await fleet_asking.follow(given, connection, runs)
        tasks = [await _ended(connection, each["task"]) for each in known if "task" in each]
        return followed, tasks

    runs, tasks = fleet_options.run(
        given, fleet_options.settings(given), work, interrupted="what was waited for goes on"
    )
    lines = [fleet_asking.run_text(each) for each in runs]
    lines += [
        f"task {each['task']} {fleet_ps.state(each)}: {fleet_ps.how_far(each)}" for each in tasks
    ]
    output.result(given, {"runs": runs, "tasks": tasks}, "\n".join(lines))
    codes = [fleet_asking.exit_code(each) for each in tasks]
    return outcome.worst([*codes, *(int(each["exit_code"]) for each in runs)])


async def _ended(connection: Connection, name: str) -> Row:
    """Wait until a task has ended, and return it."""
    import asyncio

    from mapsave.fleet import reports

    while True:
        row = await reports.one_task(connection, name)
        if row["status"] in reports.ENDED:
            return reports.plain(row)
        await asyncio.sleep(_EACH)
