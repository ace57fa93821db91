"""``mapsave job run|check FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manager import units
from manager.cli import output, running
from manager.cli.options import Command, Group, of

_FILE = click.Path(path_type=Path)


@click.group("job", cls=Group)
def command() -> None:
    """Run or check a save job written in YAML."""


@command.command("run", cls=Command)
@click.argument("file", type=_FILE)
@click.pass_context
def run(context: click.Context, /, file: Path) -> int:
    """Run a job once: its guests side by side, as many at a time as it allows.

    A guest that fails does not stop the others. The exit code is the worst of all.
    """
    from manager.jobs import engine, job

    given = of(context)
    config = given.config()
    done = running.run(engine.run(job.load(file), config), given)
    output.result(given, done, text(done))
    return int(done["exit_code"])


@command.command("check", cls=Command)
@click.argument("file", type=_FILE)
@click.pass_context
def check(context: click.Context, /, file: Path) -> int:
    """Tell what would fail, for the file and for each of its guests; nothing is touched."""
    from manager.jobs import engine, job

    given = of(context)
    config = given.config()
    done = running.run(engine.check(job.load(file), config), given)
    output.result(given, done, check_text(done))
    return int(done["exit_code"])


def text(done: dict[str, Any]) -> str:
    """Return the summary of a job's run for people."""
    rows = []
    for each in done["guests"]:
        error, saved = each["error"], each["result"]
        if error:
            rows.append((each["guest"], "FAILED", "", f"{error['message']} [{error['id']}]"))
        else:
            seconds = units.format_duration(saved["duration_s"])
            rows.append((each["guest"], "saved", seconds, saved["image"]))
    summary = f"job {done['job']}: {done['saved']} saved, {done['failed']} failed"
    return output.table(rows, ("guest", "outcome", "time", "image")) + "\n" + summary


def check_text(done: dict[str, Any]) -> str:
    """Return the outcome of a job's check for people."""
    lines = []
    for each in done["guests"]:
        error = each["error"]
        lines.append(
            f"{each['guest']}: "
            + ("can be saved" if not error else f"FAIL {error['message']} [{error['id']}]")
        )
    return "\n".join([*lines, f"job {done['job']}: {done['failed']} would fail"])
