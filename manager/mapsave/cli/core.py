"""``mapsave core IMAGE -o FILE``."""

from __future__ import annotations

import os
from typing import cast

import click

from mapsave import units
from mapsave.cli import candidates, local, output, proof_options, reporting
from mapsave.cli.options import Globals, LocalCommand, pass_globals


@click.command("core", cls=LocalCommand)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.option(
    "-o", "--output", "file", required=True, type=click.Path(), metavar="FILE", help="Where to."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"]),
    default="elf",
    help="elf: for gdb and drgn, as large as the RAM (default); the others are compressed, for "
    "crash.",
)
@click.option(
    "--physical",
    is_flag=True,
    help="Leave out the virtual addresses of the first processor, by which gdb finds memory.",
)
@click.option("--replace", is_flag=True, help="Replace the file if there is one.")
@proof_options.options
@pass_globals
def command(
    given: Globals,
    /,
    image: str,
    file: str,
    form: str,
    physical: bool,
    replace: bool,
    guest: str | None,
    program: str | None,
    trust_recorded_command: bool,
    trust_image: bool,
) -> None:
    """Write a core of an image: its memory and registers, for gdb, drgn or crash.

    The image is loaded into a QEMU that is thrown away, as by 'mapsave prove', which writes the
    core. This command reads the image itself, not the service.
    """
    from mapsave.operations import core, images

    config = given.config()
    path = images.resolve(image, config)
    is_elf = form == "elf"
    request = core.Request(file, cast("core.Form", form), is_elf and not physical, replace)
    loading = proof_options.request(guest, program, trust_recorded_command, trust_image)
    with reporting.reporting(given, "writing", os.path.basename(file)) as report:
        done = local.run(core.core(config, path, request, loading, report), given)
    size = units.format_size
    line = (
        f"wrote {done['core']}: {size(done['ram_bytes'])} of RAM of guest {done['guest']} as "
        f"{form}, {size(done['file_bytes'])}, {size(done['disk_bytes'])} on disk, in "
        f"{units.format_duration(done['duration_s'])}"
    )
    output.result(given, done, "\n".join([line, *output.warnings(done["warnings"])]))
