"""``mapsave fleet ps``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import fleet_options, fleet_patterns, output, streams
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.reports import Row

_EACH = 1.0  # seconds
CLEAR = "\x1b[H\x1b[J"  # ECMA-48: CUP, ED


@click.command("ps", cls=FleetCommand)
@fleet_patterns.argument
@click.option("--all", "-a", "ended", is_flag=True, help="Include finished tasks, newest first.")
@click.option(
    "--job", metavar="JOB", help="Only tasks of this job.", shell_complete=fleet_options.JOBS
)
@click.option("--run", metavar="RUN", type=int, help="Only tasks of this run, finished ones too.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most so many.",
)
@click.option("--watch", "-w", is_flag=True, help="List them again each second, until Ctrl-C.")
@pass_globals
def command(given: Globals, /, **wanted: Any) -> None:
    """List the tasks of the fleet that are not finished: those that run first.

    PATTERN is GUEST@HOST, such as '*@rack1-a'; without it all are listed.

    TASK is the id of the operation on its host, too: 'mapsave logs TASK' there has its steps. With
    --watch, --json prints one object a line, each time that something has changed.
    """
    from mapsave.fleet import reports

    watch = wanted.pop("watch")
    query = {"wanted": wanted.pop("pattern"), **wanted}
    found = fleet_options.settings(given)
    if not watch:
        rows = fleet_options.run(given, found, lambda found: reports.tasks(found, **query))
        output.result(given, facts(rows), text(rows))
        return
    fleet_options.run(given, found, lambda found: _watch(given, found, query), interrupted="")


async def _watch(given: Globals, connection: Connection, query: dict[str, Any]) -> None:
    """Print the list in place of the one before on a terminal, elsewhere where it has changed."""
    import asyncio

    from mapsave.fleet import reports

    before = None
    clear = CLEAR if sys.stdout.isatty() and not given.json else ""
    while streams.is_read():
        rows = await reports.tasks(connection, **query)
        if rows != before or clear:
            output.say(clear)
            output.line(given, facts(rows), text(rows))
        before = rows
        await asyncio.sleep(_EACH)


def facts(rows: list[Row]) -> Row:
    """Return the tasks as ``--json`` prints them; ``count`` is that of all, listed or not."""
    from mapsave.fleet import reports

    tasks = [{key: each for key, each in row.items() if key != "of"} for row in rows]
    return {"count": rows[0]["of"] if rows else 0, "tasks": [*map(reports.plain, tasks)]}


def text(rows: list[Row]) -> str:
    """Return the tasks as a table for people."""
    header = ("task", "run", "kind", "guest", "host", "state", "since", "how far")
    lines = [output.table(map(_row, rows), header) if rows else "no tasks"]
    if rows and rows[0]["of"] > len(rows):
        lines.append(f"and {rows[0]['of'] - len(rows)} more: --limit")
    return "\n".join(lines)


def _row(row: Row) -> tuple[str, ...]:
    since = row["ended"] or row["started"] or row["created"]
    return (
        row["task"],
        str(row["run"]),
        row["job"] or row["kind"],
        row["guest"],
        row["host"],
        state(row),
        units.format_time(since),
        how_far(row),
    )


def state(row: Row) -> str:
    """Return the state of a task in a word or two."""
    status: str = row["status"]
    if status in ("failed", "aborted"):
        return output.marked(Level.ERROR, status)
    if status == "doing":
        if row["abort_requested"]:
            return "cancelling"
        return "waits for a slot" if row["started"] is None else "running"
    return "queued" if status == "todo" else status


def how_far(row: Row) -> str:
    """Return how far a task is, or what came of it."""
    outcome, progress = row["outcome"] or {}, row["progress"] or {}
    if error := outcome.get("error"):
        return output.described(error)
    if row["ended"] is not None:
        return str(outcome.get("image") or outcome.get("message") or "")
    if progress.get("total_bytes"):
        size = units.format_size
        done, total = progress.get("done_bytes", 0), progress["total_bytes"]
        return f"{progress.get('phase')}: {size(done)} of {size(total)}"
    if row["status"] == "todo" and row["scheduled_at"] is not None:
        return f"not before {units.format_time(row['scheduled_at'])}"
    return str(progress.get("step") or "")
