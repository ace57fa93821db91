"""``mapsave fleet check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave.cli import fleet_options, output
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.reports import Row
    from mapsave.fleet.settings import Settings


@click.command("check", cls=FleetCommand)
@click.option("--offline", is_flag=True, help="Read the file only; ask no database.")
@pass_globals
def command(given: Globals, /, offline: bool) -> None:
    """Say what is wrong in fleet.yaml, and which guests of which hosts each job means now."""
    found = fleet_options.settings(given)
    path = str(found.document.path)
    if offline:
        output.result(given, {"file": path, "jobs": None}, f"{path}: nothing is wrong")
        return

    async def work(connection: Connection) -> Row:
        return await _looked(connection, found)

    shown = fleet_options.run(given, found, work)
    output.result(given, {"file": path, **shown}, _text(path, shown))


async def _looked(connection: Connection, found: Settings) -> Row:
    from mapsave.fleet import expansion

    guests = await expansion.known_guests(connection)
    cursor = await connection.execute("SELECT name FROM hosts ORDER BY name")
    hosts = [row["name"] async for row in cursor]
    jobs = {}
    for name, job in found.jobs.items():
        chosen = expansion.choose(job.guests, guests, set(), "save")
        jobs[name] = {
            "guests": len(chosen.guests),
            "hosts": len({each.place.host for each in chosen.guests}),
            "left_out": dict(chosen.left_out),
        }
    return {
        "hosts": len(hosts),
        "unnamed": [name for name in hosts if found.host(name) is None],
        "absent": [name for name in _names(found) if name not in hosts],
        "jobs": jobs,
    }


def _names(found: Settings) -> list[str]:
    from mapsave.fleet import patterns

    return [name for name in found.hosts if not patterns.is_wild(name)]


def _text(path: str, shown: Row) -> str:
    lines = [f"{path}: nothing is wrong; {shown['hosts']} hosts in the database"]
    lines += output.warnings(
        [
            *(
                f"host {name}: fleet.yaml does not name it, it gets no tasks"
                for name in shown["unnamed"]
            ),
            *(f"host {name}: not added yet ('mapsave fleet host add')" for name in shown["absent"]),
        ]
    )
    for name, job in shown["jobs"].items():
        why = ", ".join(f"{count} {reason}" for reason, count in job["left_out"].items())
        line = f"job {name}: {job['guests']} guests of {job['hosts']} hosts"
        lines.append(f"{line}; left out: {why}" if why else line)
    return "\n".join(lines)
