"""``mapsave restore-all``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import errors
from mapsave.cli import hosts, output, reporting
from mapsave.cli.here import Here
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.evacuation.restore_all import Request, RestoredAll
    from mapsave.migration.progress import Report

# A service that dies of it this often is not asked again.
_TRIES = 3
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

    with reporting.reporting(given, "restoring") as report:
        done = _restored(given, restore_all.Request(**chosen), report)
    output.result(given, done, text(done))
    return int(done["exit_code"])


def _restored(given: Globals, request: Request, report: Report) -> RestoredAll:
    """Have it done, by the service where one runs: at a boot no one asks again.

    A service that died over it recovers the restores that it was at, and is asked again; where it
    does not answer, does not come back, or dies each time, the guests are restored here.
    """
    config = given.client_config()
    for _ in range(_TRIES):
        try:
            return hosts.choose(given, config).restore_all(request, report)
        except errors.Interrupted as error:
            if "step" not in error.data:  # by a signal, or by someone who cancelled it
                raise
            lost: errors.MapsaveError = error
        except (errors.ServiceUnreachable, errors.ServiceLost) as error:
            if error.data.get("interrupted"):
                raise
            lost = error
            break
        output.note(f"{lost.message}; asking it again")
    if given.host is not None or config.is_unread:
        raise lost
    output.note(f"{lost.message}; restoring the guests without it")
    return Here(given, config).restore_all(request, report)


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
