"""``mapsave verify IMAGE...``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mapsave import units
from mapsave.cli import output, reporting, several
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.cli.here import Result
    from mapsave.cli.hosts import Host

_HEADER = ("STATE", "FORMAT", "STRUCTURE", "DATA", "CONTENTS", "IMAGE")
# What of an image is bad, by the id of the error: structure and data.
_BAD = {
    "image.data_damaged": ("valid", "DAMAGED"),
    "image.digests_damaged": ("valid", "DIGESTS DAMAGED"),
    "image.not_digested": ("-", "NO DIGESTS"),
}
_DIGESTS = {"taken": "not compared", "pending": "no digests yet", "none": "no digests"}


@click.command("verify", cls=Command)
@several.images_argument
@click.option("--data", is_flag=True, help="Compare the data with its digests; reads all of it.")
@click.option(
    "--add-digests",
    is_flag=True,
    help="Take digests of the data first, where they are still to be taken; implies --data.",
)
@pass_globals
def command(given: Globals, /, images: tuple[str, ...], data: bool, add_digests: bool) -> int:
    """Verify that images are complete: superblock, metadata, structure, bitmaps, description.

    With --data also that RAM, device state and all else are as they were when their digests were
    taken. Exits with the code of the first image that is not.
    """

    def work(host: Host, name: str) -> Result:
        with reporting.reporting(given, "verifying", os.path.basename(name)) as report:
            return host.verify(name, report, data=data or add_digests, add_digests=add_digests)

    return several.report(given, images, work, _text, marked=_marked)


def _marked(each: Result) -> Result:
    return {**each, "valid": "error" not in each}


def _text(found: list[Result]) -> str:
    """Return a table, and below it what is wrong with the images."""
    lines = [output.table(map(_row, found), _HEADER)]
    for each in found:
        if each["valid"]:
            lines += output.warnings(each["warnings"])
        else:
            lines.append(output.described(each["error"]))
    return "\n".join(lines)


def _row(found: Result) -> tuple[str, ...]:
    if not found["valid"]:
        bad = _BAD.get(found["error"]["id"], ("INVALID", "-"))
        columns = (output.marked(Level.ERROR, word) if word.isupper() else word for word in bad)
        return ("-", "-", *columns, "-", found["image"])
    known = found["data"]
    size = known["verified_bytes"]
    data = _DIGESTS[known["digests"]] if size is None else f"valid, {units.format_size(size)} read"
    return (
        found["state"],
        found["format"],
        "valid",
        data,
        units.format_size(found["data_bytes"]),
        found["image"],
    )
