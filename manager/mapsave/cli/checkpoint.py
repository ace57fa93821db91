"""``mapsave checkpoint GUEST``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import candidates, save
from mapsave.cli.options import Command, Globals, no_wait, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.results import SaveResult


@click.command("checkpoint", cls=Command)
@click.argument("guest", shell_complete=candidates.GUESTS)
@save.image_option
@save.digests_option
@save.policy_option
@save.note_option
@click.option(
    "--replace",
    is_flag=True,
    help="Replace an existing image of that name once the checkpoint is complete.",
)
@save.in_use_option
@click.option(
    "--timeout", type=save.DURATION, help="Give up after this long; the guest runs on as before."
)
@no_wait
@pass_globals
def command(given: Globals, /, guest: str, no_wait: bool, **chosen: Any) -> None:
    """Save a running guest to an image, and pause it for no more than milliseconds.

    The guest's RAM must be a shared file on the file system of the images, XFS or btrfs: the image
    shares the extents of that file. 'mapsave check --checkpoint GUEST' reports what is missing.
    """
    chosen = {**chosen, "method": "checkpoint", "then": "resume"}
    save.perform(given, guest, chosen, no_wait=no_wait, doing="checkpoint", text=summary)


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
