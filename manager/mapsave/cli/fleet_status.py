"""``mapsave fleet status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import fleet_hosts, fleet_options, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.fleet.metrics import Facts
    from mapsave.fleet.reports import Row


@click.command("status", cls=FleetCommand)
@click.option("--metrics", is_flag=True, help="Print the metrics, in Prometheus' text format.")
@pass_globals
def command(given: Globals, /, metrics: bool) -> None:
    """Show whether a scheduler leads, what waits for how long, and which hosts are silent."""
    from mapsave.fleet import metrics as series
    from mapsave.fleet import reports

    found = fleet_options.settings(given)
    facts = fleet_options.run(given, found, lambda connection: series.look(connection, found))
    if metrics and not given.json:
        output.say(series.text(facts).decode())
        return
    shown: dict[str, Any] = {
        **reports.plain(facts.queue),
        "targets": [*map(reports.plain, facts.targets)],
        "jobs": [
            {**reports.plain(row), "next_run": units.timestamp(due) if due else None}
            for row in facts.jobs
            for due in [facts.next_runs.get(row["job"])]
        ],
        "hosts": [{**reports.plain(row), "state": fleet_hosts.state(row)} for row in facts.hosts],
    }
    output.result(given, shown, text(facts))


def text(facts: Facts) -> str:
    """Return the state of the fleet for people."""
    queue = facts.queue
    leads = f"a scheduler leads (term {queue['term']})"
    lines = [
        leads if queue["is_led"] else output.marked(Level.ERROR, "no scheduler leads"),
        f"tasks: {queue['doing']} under way, {queue['todo']} queued, {queue['later']} for later"
        + (
            f"; the oldest waits since {units.format_time(queue['oldest'])}"
            if queue["oldest"]
            else ""
        ),
    ]
    bad = [row for row in facts.hosts if fleet_hosts.state(row) != "ok"]
    lines += ["", f"hosts: {len(facts.hosts) or 'none'}, {len(bad)} of them not ok"]
    lines += [fleet_hosts.text(bad)] if bad else []
    if facts.targets:
        of_target = ("target", "slots", "waiting", "since")
        lines += ["", output.table(map(_target, facts.targets), of_target)]
    if facts.jobs:
        of_job = ("job", "last run", "came to", "last success", "next run")
        rows = [_job(row, facts.next_runs.get(row["job"])) for row in facts.jobs]
        lines += ["", output.table(rows, of_job)]
    return "\n".join(lines)


def _target(row: Row) -> tuple[str, ...]:
    since = row["waiting_since"]
    used = f"{row['used']} of {row['saves']}"
    return row["target"], used, str(row["waiting"]), units.format_time(since) if since else "-"


def _job(row: Row, due: float | None) -> tuple[str, ...]:
    import datetime

    counts = row["counts"] or {}
    came_to = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    when = None if due is None else datetime.datetime.fromtimestamp(due, datetime.UTC)
    return (
        row["job"],
        units.format_time(row["last_run"]) if row["last_run"] else "never",
        came_to or ("under way" if row["run"] and row["ended"] is None else "-"),
        units.format_time(row["last_success"]) if row["last_success"] else "never",
        units.format_time(when) if when else "-",
    )
