"""``mapsave restore-all``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave.cli import hosts, local, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.evacuation.restore_all import RestoredAll

_WORDS = {
    "planned": "would be restored",
    "restored": "restored",
    "failed": "FAILED",
    "skipped": "skipped",
    "not_saved": "not saved",
}


@click.command("restore-all", cls=Command)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="1..64",
    help="Restores in parallel (default: 2).",
)
@click.option("--discard", is_flag=True, help="Delete each image once its guest is restored.")
@click.option("--dry-run", is_flag=True, help="Show what would be restored, and in which order.")
@pass_globals
def command(given: Globals, /, **chosen: Any) -> int:
    """Restore the guests that 'mapsave save-all' saved, higher priorities first.

    Guests that were running when saved are resumed, the others stay paused. A guest that fails
    is reported and tried again by the next restore-all; one that was restored is never restored
    again. Exits with the worst code of all.
    """
    from mapsave.evacuation import restore_all

    host = hosts.choose(given, given.config())
    with local.reporting(given, "restoring") as report:
        done = host.restore_all(restore_all.Request(**chosen), report)
    output.result(given, done, text(done))
    return int(done["exit_code"])


def text(done: RestoredAll) -> str:
    """Return the summary of a restore-all for people."""
    lines = [
        f"recovered: {each['operation']} of {each['guest']}: "
        f"{each['error']['message'] if each['error'] else each['outcome']}"
        for each in done["recovered"]
    ]
    rows = [
        (
            each["guest"],
            str(each["priority"]),
            output.duration(each["result"]),
            output.marked(
                Level.ERROR if each["outcome"] == "failed" else Level.INFO, _WORDS[each["outcome"]]
            ),
            output.described(each["error"]) if each["error"] else each["note"] or each["image"],
        )
        for each in done["guests"]
    ]
    if not rows:
        return "\n".join([*lines, f"nothing to restore: {done['record']!r} lists no guest"])
    lines.append(output.table(rows, ("guest", "priority", "time", "outcome", "image")))
    counted = {key: done[key] for key in ("restored", "failed", "skipped", "not_saved")}
    words = [f"{count} {_WORDS[key]}" for key, count in counted.items() if count]
    whole = outcome.whole("restore-all", {**done})
    summary = output.marked(whole.level if whole else Level.INFO, ", ".join(words))
    return "\n".join([*lines, "restore-all: " + (summary or "nothing was touched")])
