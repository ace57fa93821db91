"""``mapsave plan GUEST``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import local, output
from mapsave.cli.options import Command, Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.plan.cost import Prediction


@click.command("plan", cls=Command)
@click.argument("guest")
@click.option(
    "--into",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Where the image would be written (default: the image directory).",
)
@pass_globals
def command(given: Globals, /, guest: str, into: Path | None) -> None:
    """Show how a guest would be saved: the choice, its alternatives, and why.

    The guest keeps running. A directory that was not measured yet is measured first, as 'mapsave
    probe' does.
    """
    from mapsave.operations import preview

    config = given.config()
    found = local.run(preview.plan(config.guest(guest), config, into or config.images), given)
    plan = found.plan
    rows = [_row(plan.chosen, "*"), *(_row(each, "") for each in plan.others)]
    header = ("", "time", "written", "on disk", "way")
    text = f"{guest}: {plan.reason}\n{output.table(rows, header)}"
    data = {
        "guest": guest,
        "directory": found.directory,
        "measured": found.measured,
        "filled": found.filled,
        "chosen": _data(plan.chosen),
        "reason": plan.reason,
        "others": [_data(each) for each in plan.others],
    }
    output.result(given, data, text)


def _row(each: Prediction, mark: str) -> tuple[str, ...]:
    sizes = (units.format_size(each.written_bytes), units.format_size(each.file_bytes))
    return (mark, units.format_duration(each.seconds), *sizes, each.way.text())


def _data(each: Prediction) -> dict[str, Any]:
    figures = {name: getattr(each, name) for name in ("seconds", "written_bytes", "file_bytes")}
    return {**vars(each.way), **figures}
