"""``mapsave clone IMAGE``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.options import Command, Globals, no_wait, pass_globals
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.evacuation.clones import Cloned

_WORDS = {"cloned": "cloned", "failed": "FAILED"}


@click.command("clone", cls=Command)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    metavar="1..1000",
    help="How many (default: 1); they get the first numbers that are free.",
)
@click.option(
    "--name", "names", metavar="NAME", multiple=True, help="Name of a clone; may be repeated."
)
@click.option(
    "--guest",
    metavar="NAME",
    help="Use 'clone:' of this guest instead of the image's own.",
    shell_complete=candidates.GUESTS,
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="1..64",
    help="How many are started at once (default: 8).",
)
@click.option("--run", "run", flag_value="run", help="Resume them, even if it was saved paused.")
@click.option("--paused", "run", flag_value="paused", help="Leave them paused.")
@click.option("--again", is_flag=True, help="Clone an image that has been restored.")
@click.option(
    "--force",
    is_flag=True,
    help="Accept an older QEMU, or another processor or machine, than was saved, and an image that "
    "is known to be damaged.",
)
@click.option("--trust-image", is_flag=True, help="Accept an image that others could have written.")
@no_wait
@pass_globals
def command(
    given: Globals, /, image: str, run: str | None, no_wait: bool, **chosen: Any
) -> int | None:
    """Start several guests from one image, by --count or each by --name.

    'clone:' of the guest in the configuration says how each is started. Their RAM is mapped from
    the image and shared until they change it; the image stays as it is. Disks and addresses are
    what that command line makes of '{name}' and '{n}'. A clone that fails prevents no other.
    Exits with the worst code of all.
    """
    chosen["run"] = run or "as-saved"
    host = hosts.choose(given, given.client_config(), image=image)
    if no_wait:
        output.begun(given, hosts.background(host).begin_clone(image, chosen))
        return None
    with reporting.reporting(given, "cloning", os.path.basename(image)) as report:
        done = host.clone(image, chosen, report)
    output.result(given, done, text(done))
    return int(done["exit_code"])


def text(done: Cloned) -> str:
    """Return the summary of a clone for people."""
    rows = [
        (
            each["guest"],
            output.duration(each["result"]),
            output.marked(Level.ERROR if each["error"] else Level.INFO, _WORDS[each["outcome"]]),
            output.described(each["error"]) if each["error"] else _place(each["result"] or {}),
        )
        for each in done["clones"]
    ]
    whole = outcome.whole("clone", {**done})
    assert whole is not None
    took = units.format_duration(done["duration_s"])
    warnings = [words for each in done["clones"] for words in _warnings(each["result"] or {})]
    return "\n".join(
        [
            output.table(rows, ("guest", "time", "outcome", "monitor")),
            f"clone: {output.marked(whole.level, whole.words)} from {done['image']} in {took}",
            *output.warnings(dict.fromkeys(warnings)),
        ]
    )


def _place(result: Mapping[str, object]) -> str:
    return f"{result['run_state']} at {result['monitor']}"


def _warnings(result: Mapping[str, Any]) -> list[str]:
    return list(result.get("warnings", ()))
