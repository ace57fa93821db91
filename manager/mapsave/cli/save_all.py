"""``mapsave save-all [GUEST...]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import errors, units
from mapsave.cli import candidates, output, reporting
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.cli.save import DURATION
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.evacuation.save_all import SavedAll

_WORDS = {
    "saved": "saved",
    "failed": "FAILED",
    "no_time": "without time",
    "not_running": "not running",
    "skipped": "already saved",
}
_LEVELS = {"failed": Level.ERROR, "no_time": Level.ERROR}
_UNTOUCHED = {
    "planned": "would be saved",
    "no_time": "NO TIME",
    "not_running": "not running",
    "skipped": "skipped",
    "saved": "saved",
    "failed": "FAILED",
}


@click.command("save-all", cls=Command)
@click.argument("guests", nargs=-1, metavar="[GUEST]...", shell_complete=candidates.GUESTS)
@click.option("--deadline", type=DURATION, help="Time limit for all saves together, such as 4m.")
@click.option("--libvirt", is_flag=True, help="Also save libvirt's active domains.")
@click.option("--uri", metavar="URI", help="libvirt connection URI (default: qemu:///system).")
@click.option(
    "--then",
    type=click.Choice(["quit", "resume", "leave"]),
    default="quit",
    help="What to do with the guests afterwards: quit (default), resume those that were "
    "running, or leave them paused.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="1..64",
    help="Saves in parallel (default: as many as make it faster).",
)
@click.option("--dry-run", is_flag=True, help="Show the order, and what would not fit.")
@pass_globals
def command(given: Globals, /, **chosen: Any) -> int:
    """Save all guests before the host goes down, or those named: GUEST may be a pattern like db*.

    Higher priorities come first, smaller guests before larger ones; each keeps running until its
    own save begins. A guest that does not fit into the deadline is reported and keeps running.
    'mapsave restore-all' restores what was saved. Exits with the worst code of all.
    """
    from mapsave.cli import shutdown
    from mapsave.evacuation import save_run

    chosen["libvirt"] = _uri(chosen["libvirt"], chosen.pop("uri"))
    request = save_run.Request(**chosen)
    with reporting.reporting(given, "saving") as report:
        done = shutdown.save_all(given, request, report)
    output.result(given, done, text(done))
    return int(done["exit_code"])


def _uri(libvirt: bool, uri: str | None) -> str | None:
    from mapsave.guest_address import LIBVIRT_URI

    if uri is not None and not libvirt:
        raise errors.UsageError("--uri requires --libvirt")
    return (uri or LIBVIRT_URI) if libvirt else None


def text(done: SavedAll) -> str:
    """Return the summary of a save-all for people."""
    rows = [
        (
            each["guest"],
            str(each["priority"]),
            units.format_size(each["size_bytes"]) if each["size_bytes"] else "-",
            output.duration(each["result"] or {"duration_s": each["estimate_s"]}),
            output.marked(_LEVELS.get(each["outcome"], Level.INFO), _UNTOUCHED[each["outcome"]]),
            output.described(each["error"]) if each["error"] else each["image"] or "-",
        )
        for each in done["guests"]
    ]
    header = ("guest", "priority", "size", "time", "outcome", "image")
    lines = [output.table(rows, header)] if rows else []
    return "\n".join([*lines, *_figures(done)])


def _figures(done: SavedAll) -> list[str]:
    size, lines = units.format_size, []
    free = done["free_bytes"]
    if done["dry_run"]:
        rate = done["rate_bytes_per_s"]
        unknown = "no saved image to estimate the rate from"
        how = f"at the recent rate of {size(rate)}/s" if rate else unknown
        lines.append(f"to write: {size(done['needed_bytes'])}, {how}")
        if free is not None and free < done["needed_bytes"]:
            lines.append(f"but only {size(free)} of free space for images")
    counts: Facts = {**done}
    words = [f"{counts[key]} {word}" for key, word in _WORDS.items() if counts[key]]
    if not done["dry_run"]:
        words.append(f"in {units.format_duration(done['duration_s'])}")
    whole = outcome.whole("save-all", counts)
    summary = output.marked(whole.level if whole else Level.INFO, ", ".join(words))
    return [*lines, "save-all: " + (summary or "all would fit")]
