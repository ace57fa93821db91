"""``mapsave prove IMAGE...``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import click

from mapsave import errors, units
from mapsave.cli import candidates, local, output, proof_options, reporting, several
from mapsave.cli.options import Globals, LocalCommand, pass_globals
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.cli.here import Result
    from mapsave.cli.hosts import Host
    from mapsave.config import Config

_HEADER = ("PROVEN", "QEMU", "DEVICES", "TOOK", "IMAGE")


@click.command("prove", cls=LocalCommand)
@click.argument("images", nargs=-1, metavar="[IMAGE]...", shell_complete=candidates.IMAGES)
@click.option("--all", "all_images", is_flag=True, help="All images of the image directory.")
@proof_options.options
@pass_globals
def command(
    given: Globals,
    /,
    images: tuple[str, ...],
    all_images: bool,
    guest: str | None,
    program: str | None,
    trust_recorded_command: bool,
    trust_image: bool,
) -> int:
    """Prove that images can be loaded: each into a QEMU that is thrown away.

    That QEMU has the guest's command line, but null disks, networks and consoles in place of the
    guest's, and its processors never run. With another QEMU it rehearses an upgrade. This command
    reads the images itself, not the service; images and guests are as before.
    """
    from mapsave.operations import images as places
    from mapsave.operations import prove

    config = given.config()
    if all_images == bool(images):
        raise errors.UsageError("give images, or --all for those of the image directory")
    request = proof_options.request(guest, program, trust_recorded_command, trust_image)

    def work(_: Host, name: str) -> Result:
        path = places.resolve(name, config)
        with reporting.reporting(given, "proving", os.path.basename(path)) as report:
            done = local.run(prove.prove(config, path, request, report), given)
            return cast("Result", done)

    return several.report(given, images or _all(config), work, _text, marked=_marked)


def _all(config: Config) -> tuple[str, ...]:
    """Return the paths of the complete images of the image directory. Raises ImageNotFound."""
    from mapsave.image import store
    from mapsave.image.store import EntryState

    whole = (EntryState.SAVED, EntryState.RESTORED)
    with store.directory(config.images) as held:
        found = tuple(entry.path for entry in store.entries(held) if entry.state in whole)
    if not found:
        raise errors.ImageNotFound(f"no image in {str(config.images)!r}")
    return found


def _marked(each: Result) -> Result:
    return {**each, "proven": "error" not in each}


def _text(found: list[Result]) -> str:
    """Return a table, and below it why images were not proven."""
    lines = [output.table(map(_row, found), _HEADER)]
    for each in found:
        lines += (
            output.warnings(each["warnings"])
            if each["proven"]
            else [f"{each['image']}: {output.described(each['error'])}"]
        )
    return "\n".join(lines)


def _row(found: Result) -> tuple[str, ...]:
    if not found["proven"]:
        refused = errors.NotProvable.id == found["error"]["id"]
        word = "not provable" if refused else "NO"
        return (output.marked(Level.ERROR, word), "-", "-", "-", found["image"])
    took = units.format_duration(found["duration_s"])
    devices = str(len(found["devices"]))
    return ("yes", found["qemu"]["version"], devices, took, found["image"])
