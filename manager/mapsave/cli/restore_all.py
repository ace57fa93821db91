"""``mapsave restore-all``."""

from __future__ import annotations

from typing import Any

import click

from mapsave import units
from mapsave.cli import hosts, local, output
from mapsave.cli.options import Command, of

_WORDS = {
    "planned": "would be restored",
    "restored": "restored",
    "failed": "FAILED",
    "skipped": "skipped",
    "not_saved": "not saved",
}
_COUNTED = ("restored", "failed", "skipped", "not_saved")


@click.command("restore-all", cls=Command)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="1..64",
    help="Restores in parallel (default: 2).",
)
@click.option("--discard", is_flag=True, help="Delete each image once its guest is restored.")
@click.option("--dry-run", is_flag=True, help="Show what would be restored, and in which order.")
@click.pass_context
def command(context: click.Context, /, **chosen: Any) -> int:
    """Restore the guests that 'mapsave save-all' saved, higher priorities first.

    Guests that were running when saved are resumed, the others stay paused. A guest that fails
    is reported and tried again by the next restore-all; one that was restored is never restored
    again. Exits with the worst code of all.
    """
    from mapsave.evacuation import restore_all

    given = of(context)
    host = hosts.choose(given, given.config())
    with local.reporting(given, "restoring") as report:
        done = host.restore_all(restore_all.Request(**chosen), report)
    output.result(given, done, text(done))
    return int(done["exit_code"])


def text(done: dict[str, Any]) -> str:
    """Return the summary of a restore-all for people."""
    lines = [
        f"recovered: {each['operation']} of {each['guest']}: "
        + (each["outcome"] or each["error"]["message"])
        for each in done["recovered"]
    ]
    rows = []
    for each in done["guests"]:
        error, result = each["error"], each["result"]
        seconds = units.format_duration(result["duration_s"]) if result else "-"
        detail = f"{error['message']} [{error['id']}]" if error else each["note"] or each["image"]
        rows.append(
            (each["guest"], str(each["priority"]), seconds, _WORDS[each["outcome"]], detail)
        )
    if not rows:
        return "\n".join([*lines, f"nothing to restore: {done['record']!r} lists no guest"])
    lines.append(output.table(rows, ("guest", "priority", "time", "outcome", "image")))
    words = [f"{done[key]} {_WORDS[key].lower()}" for key in _COUNTED if done[key]]
    return "\n".join([*lines, "restore-all: " + (", ".join(words) or "nothing was touched")])
