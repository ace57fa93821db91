"""``mapsave fleet logs [TASK]``."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import click

from mapsave import units
from mapsave.cli import fleet_options, fleet_ps, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.reports import Row


@click.command("logs", cls=FleetCommand)
@click.argument("task", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="At most so many.",
)
@pass_globals
def command(given: Globals, /, task: str | None, limit: int) -> None:
    """Show what happened to TASK, by its id or the beginning of it, and the steps on its host.

    Without TASK show what happened last in the fleet.
    """
    from mapsave.fleet import reports

    async def work(connection: Connection) -> tuple[Row | None, list[Row]]:
        if task is None:
            return None, await reports.events(connection, None, limit)
        row = await reports.one_task(connection, task)
        return row, await reports.events(connection, [row["job_id"]], limit)

    row, events = fleet_options.run(given, fleet_options.settings(given), work)
    shown = [*map(reports.plain, events)]
    if row is None:
        lines = [f"{_time(each['at'])}  {each['event']:<16}  {_what(each)}" for each in events]
        output.result(given, {"events": shown}, "\n".join(lines) or "nothing happened yet")
        return
    output.result(given, {"task": reports.plain(row), "events": shown}, _task_text(row, events))


def _what(each: Row) -> str:
    return f"{each['task']}  {each['guest']} of {each['host']}, run {each['run']}"


def _task_text(row: Row, events: list[Row]) -> str:
    what = row["job"] or row["kind"]
    lines = [f"task {row['task']}: {what} of {row['guest']} on {row['host']}, run {row['run']}"]
    found = [(each["at"], each["event"]) for each in events]
    for step in (row["outcome"] or {}).get("steps") or ():
        try:
            when = datetime.datetime.fromisoformat(str(step["time"]))
            found.append((when, f"  {step['step']}"))
        except (KeyError, TypeError, ValueError):
            continue  # a host says what it likes
    lines += [f"{_time(when)}  {words}" for when, words in sorted(found, key=lambda each: each[0])]
    lines.append(f"{fleet_ps.state(row)}: {fleet_ps.how_far(row)}".rstrip(": "))
    return "\n".join(lines)


def _time(when: datetime.datetime) -> str:
    return units.format_time(when, precisely=True)
