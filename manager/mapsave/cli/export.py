"""``mapsave export IMAGE -o FILE|-``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from mapsave import errors, units
from mapsave.cli import candidates, output, reporting
from mapsave.cli.options import Globals, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.export import Exported

_STREAM = "-"
_LEVELS = click.IntRange(1, 19)


@click.command("export", cls=LocalCommand)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.option(
    "-o",
    "--output",
    "archive",
    required=True,
    type=click.Path(),
    metavar="FILE|-",
    help="Where to write it; - is standard output.",
)
@click.option("--replace", is_flag=True, help="Replace the file if there is one.")
@click.option(
    "--level", type=_LEVELS, help="How hard zstd tries: 1 (fast) to 19, default 3, encrypted 1."
)
@click.option("--no-compression", is_flag=True, help="Write a plain tar.")
@click.option(
    "-r",
    "--recipient",
    "recipients",
    multiple=True,
    metavar="KEY",
    help="Encrypt it, for this public key of age or SSH; may be repeated.",
)
@click.option(
    "-R",
    "--recipients-file",
    "files",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Encrypt it for the public keys of a file, one a line; may be repeated.",
)
@pass_globals
def command(
    given: Globals,
    /,
    image: str,
    archive: str,
    replace: bool,
    level: int | None,
    no_compression: bool,
    recipients: tuple[str, ...],
    files: tuple[str, ...],
) -> None:
    """Export an image as a sparse tar, compressed with zstd, for another host or an archive.

    'mapsave import' takes it; without mapsave 'zstd -d | tar -xS' unpacks the image, of an
    encrypted one 'age -d | zstd -d | tar -xS'. Its data is compared with its digests while it is
    read. The image may be in use. It is read by this command, not by the service.
    """
    from mapsave.archive import coding, keys
    from mapsave.cli import local
    from mapsave.operations import export, images

    if no_compression and level is not None:
        raise errors.UsageError("--level and --no-compression contradict each other")
    if archive == _STREAM and (given.json or sys.stdout.isatty()):
        what = "the object of --json" if given.json else "a terminal"
        raise errors.UsageError(
            f"an archive and {what} do not go together on standard output",
            hint="name a file, or pipe it into another program",
        )
    found = keys.recipients(recipients, files)
    usual = coding.ENCRYPTED_LEVEL if found else coding.DEFAULT_LEVEL
    chosen = coding.Coding(None if no_compression else level or usual, found)
    path = images.resolve(image, given.config())
    request = export.Request(path=path, archive=archive, coding=chosen, replace=replace)
    with reporting.reporting(given, "exporting", os.path.basename(image)) as report:
        done = local.run(export.export(request, report), given)
    if archive == _STREAM:
        if not given.quiet:
            output.note(_line(done))
        for text in output.warnings(done["warnings"]):
            output.note(text)
        return
    lines = [_line(done), *output.warnings(done["warnings"])]
    output.result(given, done, "\n".join(lines))


def _line(done: Exported) -> str:
    size = units.format_size
    words = f"exported {done['image']}, {size(done['data_bytes'])} of data"
    to = "standard output" if done["archive"] == _STREAM else done["archive"]
    words += f", to {to}: {size(done['archive_bytes'])}"
    if done["recipients"]:
        words += f", for {done['recipients']} to decrypt"
    return f"{words}, in {units.format_duration(done['duration_s'])}"
