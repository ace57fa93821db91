"""Ask the scheduler for something, and wait for what comes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mapsave import errors, units
from mapsave.cli import fleet_options, fleet_ps, output, reporting
from mapsave.cli.options import Globals
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.reports import Row

_LIMIT = 30.0  # seconds for an answer
_LOOK = 0.2
_EACH = 1.0  # seconds between two looks at what is waited for
_RUNNING = 10  # tasks that are shown while a run is waited for
# What an outcome without an error of its own exits with.
_CODES = {"succeeded": 0, "failed": 4, "cancelled": 9, "aborted": 9}


def ask(given: Globals, kind: str, what: dict[str, Any], *, wait: bool = False) -> int:
    """Ask for a run, print what it is, and with ``wait`` what came of it; return the exit code.

    Raises NoScheduler, and what the scheduler refuses the request with.
    """
    found = fleet_options.settings(given)

    async def work(connection: Connection) -> tuple[Row, list[Row] | None]:
        answer = await answered(connection, kind, what)
        if not wait:
            return answer, None
        if not given.json and not given.quiet:
            output.note(answer_text(answer))
        return answer, await follow(given, connection, [int(answer["run"])])

    answer, runs = fleet_options.run(given, found, work, interrupted="what was asked for goes on")
    if runs is None:
        output.result(given, answer, answer_text(answer))
        return 0
    output.result(given, {**answer, **runs[0]}, run_text(runs[0]))
    return int(runs[0]["exit_code"])


async def answered(connection: Connection, kind: str, what: dict[str, Any]) -> Row:
    """Ask the scheduler, and return its answer. Raises NoScheduler, or what it refuses with."""
    import asyncio
    import time

    from psycopg.types.json import Jsonb

    cursor = await connection.execute(
        "INSERT INTO requests (kind, what) VALUES (%s, %s) RETURNING id", [kind, Jsonb(what)]
    )
    row = await cursor.fetchone()
    assert row is not None
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        cursor = await connection.execute(
            "SELECT answer FROM requests WHERE id = %s AND answered IS NOT NULL", [row["id"]]
        )
        if (found := await cursor.fetchone()) is not None:
            answer: Row = found["answer"]
            if "error" in answer:
                raise errors.from_dict(answer["error"])
            return answer
        await asyncio.sleep(_LOOK)
    raise errors.NoScheduler(
        f"no scheduler has answered within {_LIMIT:.0f} s; the request is void",
        hint="start 'mapsave fleet scheduler' on any host; 'mapsave fleet status' shows whether "
        "one leads",
    )


def answer_text(answer: Row) -> str:
    """Return what was answered to a request for a run, for people."""
    words = f"run {answer['run']}: {answer['tasks']} tasks"
    return f"{words}; left out: {answer['why']}" if answer["why"] else words


async def follow(given: Globals, connection: Connection, numbers: Iterable[int]) -> list[Row]:
    """Wait until runs have ended, and return each with its failures and its exit code.

    On a terminal a table shows how far they are. Raises UnknownRun.
    """
    import asyncio
    import time

    from mapsave.fleet import reports

    is_live = sys.stderr.isatty() and not given.quiet and not given.debug
    numbers = [*numbers]
    news = time.monotonic() + reporting.EVERY
    while True:
        runs = [await reports.run(connection, number) for number in numbers]
        if not any(map(_active, runs)):
            break
        if is_live:
            tasks = await reports.tasks(connection, job=None, run=None, limit=_RUNNING, ended=False)
            doing = [row for row in tasks if row["run"] in numbers and row["status"] == "doing"]
            _show([*map(counts_text, runs), *([fleet_ps.text(doing)] if doing else [])])
        elif not given.quiet and time.monotonic() >= news:
            news = time.monotonic() + reporting.EVERY
            for each in runs:
                output.note(counts_text(each))
        await asyncio.sleep(_EACH)
    if is_live:
        _show([])
    return [await _ended(connection, each) for each in runs]


def _show(lines: list[str]) -> None:
    sys.stderr.write(fleet_ps.CLEAR + output.printable("\n".join(lines)) + "\n" * bool(lines))
    sys.stderr.flush()


async def _ended(connection: Connection, run: Row) -> Row:
    from mapsave.fleet import reports

    failed = await reports.failures(connection, run["run"])
    return {
        **reports.plain(run),
        "failures": [*map(reports.plain, failed)],
        "exit_code": outcome.worst(map(exit_code, failed)),
    }


def exit_code(task: Row) -> int:
    """Return the exit code for a finished task."""
    error = (task["outcome"] or {}).get("error")
    found = error.get("exit_code") if isinstance(error, dict) else None
    # A host says what it likes.
    is_known = isinstance(found, int) and found in range(1, 10)
    return int(found) if is_known else _CODES[task["status"]]  # type: ignore[arg-type]


def _active(run: Row) -> int:
    return int(run["counts"].get("todo", 0)) + int(run["counts"].get("doing", 0))


def counts_text(run: Row) -> str:
    """Return a run with the number of its tasks by state, for people."""
    words = {
        "doing": "under way",
        "todo": "queued",
        "succeeded": "done",
        "failed": "FAILED",
        "aborted": "cancelled on the host",
        "cancelled": "cancelled",
    }
    counts = [
        f"{run['counts'][key]} {word}" for key, word in words.items() if run["counts"].get(key)
    ]
    what = run["job"] or f"{run['kind']} {run['host'] or ''}".rstrip()
    return f"run {run['run']} ({what}): {', '.join(counts) or 'no tasks'}"


def run_text(run: Row) -> str:
    """Return what came of a run, for people: its failures, and how many came to what."""
    header = ("guest", "host", "outcome", "time", "why")
    rows = [
        (
            row["guest"],
            row["host"],
            output.marked(Level.ERROR, row["status"]),
            _time(row),
            fleet_ps.how_far({**row, "progress": None}),
        )
        for row in run["failures"]
    ]
    table = [output.table(rows, header)] if rows else []
    why = f"; {run['why']}" if run["why"] else ""
    return "\n".join([*table, counts_text(run) + why])


def _time(row: Row) -> str:
    import datetime

    if row["started"] is None or row["ended"] is None:
        return "-"
    begun, ended = (datetime.datetime.fromisoformat(str(row[key])) for key in ("started", "ended"))
    return units.format_duration(max((ended - begun).total_seconds(), 0))
