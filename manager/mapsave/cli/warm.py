"""``mapsave warm IMAGE``."""

from __future__ import annotations

import os
from typing import Any

import click

from mapsave import errors, units
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.here import Result
from mapsave.cli.options import Command, Globals, Parsed, pass_globals
from mapsave.cli.save import DURATION


def _size(value: Any) -> int:
    if (found := units.parse_size(value)) == 0:
        raise ValueError("must not be 0")
    return found


@click.command("warm", cls=Command)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.option(
    "--learn",
    is_flag=True,
    help="Record which pages the guests that live on the image have touched; read nothing.",
)
@click.option("--all", is_flag=True, help="Then read all other pages, too.")
@click.option("--rate", type=Parsed("size", _size), help="Read at most so many bytes per second.")
@click.option("--timeout", type=DURATION, help="Stop after this long.")
@pass_globals
def command(given: Globals, /, image: str, **chosen: Any) -> None:
    """Read the pages that a guest needs first into the page cache, before an instant restore.

    Which these are is its working set: what it touched after an earlier instant restore of the
    image. Each save of such a guest records it, and so does --learn.
    """
    if chosen["learn"] and any(chosen[name] for name in ("all", "rate", "timeout")):
        raise errors.UsageError("--learn reads nothing: it has no use for the other options")
    host = hosts.choose(given, given.client_config(), image=image)
    with reporting.reporting(given, "warming", os.path.basename(image)) as report:
        done = host.warm(image, chosen, report)
    output.result(given, done, _line(done))


def _line(done: Result) -> str:
    size = units.format_size
    if done["learned_from"]:
        users = output.users(done["learned_from"])
        return f"{done['image']}: working set of {size(done['working_set_bytes'])}, of {users}"
    found = done["warm"]
    rest = f" of {size(found['of_bytes'])}: {found['why_not']}" if found["why_not"] else ""
    duration = units.format_duration(found["duration_s"])
    return f"{done['image']}: {size(found['bytes'])}{rest} read into the page cache in {duration}"
