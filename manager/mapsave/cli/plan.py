"""``mapsave plan GUEST|IMAGE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mapsave import errors, units
from mapsave.cli import candidates, check, local, output
from mapsave.cli.here import Here
from mapsave.cli.options import Globals, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.config import Config
    from mapsave.plan.cost import Prediction, ReadPrediction


@click.command("plan", cls=LocalCommand)
@click.argument("target", metavar="GUEST|IMAGE", shell_complete=candidates.GUESTS_AND_IMAGES)
@click.option(
    "--into",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Where the image of a guest would be written (default: the image directory).",
)
@pass_globals
def command(given: Globals, /, target: str, into: Path | None) -> None:
    """Show how a guest would be saved, or an image read: the choice, its alternatives, and why.

    The guest keeps running. A directory that was not measured yet is measured first, as 'mapsave
    probe' does; that of an image is not.
    """
    config = given.config()
    if check.is_guest(Here(given, config), config, target):
        _plan_save(given, config, target, into)
        return
    if into is not None:
        raise errors.UsageError(f"--into is for guests, and {target!r} is an image")
    _plan_restore(given, config, target)


def _plan_save(given: Globals, config: Config, guest: str, into: Path | None) -> None:
    from mapsave.operations import preview

    found = local.run(preview.plan(config.guest(guest), config, into or config.images), given)
    plan = found.plan
    header = ("", "time", "written", "on disk", "way")
    rows = [_row(each, each.written_bytes, each.file_bytes) for each in (plan.chosen, *plan.others)]
    data = {
        "guest": guest,
        "directory": found.directory,
        "measured": _time(found.measured),
        "filled": found.filled,
        "chosen": _data(plan.chosen),
        "reason": plan.reason,
        "others": [_data(each) for each in plan.others],
        "checkpoint": found.checkpoint,
    }
    lines = [f"{guest}: {plan.reason}", _table(rows, header), check.forecast(found.checkpoint)]
    if found.proof is not None:
        prove, seconds = found.proof
        data["proof"] = {"by": prove, "predicted_s": round(seconds, 6)}
        while_paused = ", for which the guest stays paused" if prove == "pages" else ""
        lines.append(f"proof by {prove}: {units.format_duration(seconds)} more{while_paused}")
    output.result(given, data, "\n".join(lines))


def _plan_restore(given: Globals, config: Config, target: str) -> None:
    from mapsave.operations import images, preview

    path = images.resolve(target, config)
    found = local.run(preview.plan_restore(path, config), given)
    plan = found.strategy.plan
    rows = [_row(each, each.read_bytes) for each in (plan.chosen, *plan.others)]
    data = {
        "image": path,
        "measured": _time(found.measured),
        "chosen": _data(plan.chosen),
        "reason": plan.reason,
        "others": [_data(each) for each in plan.others],
    }
    table = _table(rows, ("", "time", "read", "way"))
    output.result(given, data, f"{path}: {plan.reason}\n{table}")


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return the table of the ways, of which the first is the choice."""
    return output.table([("" if at else "*", *row) for at, row in enumerate(rows)], header)


def _row(each: Prediction | ReadPrediction, *sizes: int) -> tuple[str, ...]:
    return (
        units.format_duration(each.seconds),
        *map(units.format_size, sizes),
        each.way.text(),
    )


def _data(each: Prediction | ReadPrediction) -> dict[str, Any]:
    figures = ("written_bytes", "file_bytes", "read_bytes")
    return {
        **vars(each.way),
        "predicted_s": round(each.seconds, 6),
        **{name: value for name, value in vars(each).items() if name in figures},
    }


def _time(measured: float) -> str | None:
    """Return when a directory was measured, None where it was not."""
    return units.timestamp(measured) if measured else None
