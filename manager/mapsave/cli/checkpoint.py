"""``mapsave checkpoint GUEST``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.options import Command, Globals, no_wait, pass_globals
from mapsave.cli.save import DURATION, NOTE

if TYPE_CHECKING:
    from mapsave.operations.results import SaveResult


@click.command("checkpoint", cls=Command)
@click.argument("guest", shell_complete=candidates.GUESTS)
@click.option("--image", "-o", metavar="PATH", help="Path, or name in the image directory.")
@click.option(
    "--digests",
    type=click.Choice(["after", "before", "off"]),
    help="Take digests of the image's data once it is committed (default; the service does), "
    "before that, or not at all.",
)
@click.option(
    "--policy",
    metavar="NAME",
    help="Label policy: a name or a YAML file.",
    shell_complete=candidates.POLICIES,
)
@click.option("--note", type=NOTE, help="A note for the image, which 'list' and 'inspect' show.")
@click.option(
    "--replace",
    is_flag=True,
    help="Replace an existing image of that name once the checkpoint is complete.",
)
@click.option("--in-use", is_flag=True, help="Replace it even if a guest lives on it.")
@click.option(
    "--timeout", type=DURATION, help="Give up after this long; the guest runs on as before."
)
@no_wait
@pass_globals
def command(given: Globals, /, guest: str, no_wait: bool, **chosen: Any) -> None:
    """Save a running guest to an image, and pause it for no more than milliseconds.

    The guest's RAM must be a shared file on the file system of the images, XFS or btrfs: the image
    shares the extents of that file. 'mapsave check --checkpoint GUEST' reports what is missing.
    """
    config = given.client_config()
    target = config.guest(guest)
    chosen = {**chosen, "method": "checkpoint", "then": "resume"}
    host = hosts.choose(given, config, image_to_be=chosen["image"], policy=chosen["policy"])
    if no_wait:
        output.begun(given, hosts.background(host).begin_save(target, chosen))
        return
    with reporting.reporting(given, "checkpoint", target.name) as report:
        done = host.save(target, chosen, report)
    output.result(given, done.as_dict(), summary(done))


def summary(done: SaveResult) -> str:
    """Return one sentence about a checkpoint."""
    size = units.format_size
    state = "guest left paused" if done.then == "leave" else "guest paused for "
    if done.then != "leave":
        state += units.format_duration(done.downtime_s or 0.0)
    return (
        f"checkpoint of {done.guest} in {done.image}: {size(done.data_bytes)} of "
        f"{size(done.ram_bytes)} RAM, {state}"
    )
