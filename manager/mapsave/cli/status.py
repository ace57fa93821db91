"""``mapsave status``."""

import click

from mapsave import typed
from mapsave.cli import hosts, jobs, output, ps
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import responses
from mapsave.jobs.outcome import Level


@click.command("status", cls=Command)
@pass_globals
def command(given: Globals, /) -> None:
    """Show whether the service is healthy, what runs and waits, what failed last, and when jobs
    run next."""
    found = hosts.needed_service(given).get("/v1/status")
    output.result(given, found, text(typed.convert(found, responses.Status)))


def text(found: responses.Status) -> str:
    """Return the state of the service for people."""
    running = output.since(found.started)
    level = Level.ERROR if found.reasons else Level.INFO
    lines = [
        f"mapsaved {found.version}, process {found.pid}: {output.marked(level, found.status)}, "
        f"up for {running}",
        *(f"  {reason}" for reason in found.reasons),
    ]
    for title, operations in (
        ("running", found.running),
        ("waiting", found.waiting),
        ("failed last", found.failed),
    ):
        lines += ["", f"{title}: {len(operations) or 'nothing'}"]
        lines += [ps.text(operations)] if operations else []
    lines += ["", f"jobs: {len(found.jobs) or 'none'}"]
    lines += [jobs.table(found.jobs)] if found.jobs else []
    return "\n".join(lines)
