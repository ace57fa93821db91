"""``mapsave prove IMAGE``."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import click

from mapsave import errors, units
from mapsave.cli import candidates, local, output, reporting
from mapsave.cli.options import Globals, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.prove import Proven


@click.command("prove", cls=LocalCommand)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.option(
    "--guest",
    metavar="GUEST",
    shell_complete=candidates.GUESTS,
    help="Prove that it can be restored as this guest (default: the one that was saved).",
)
@click.option(
    "--with",
    "program",
    metavar="QEMU",
    help="Take this QEMU in place of the guest's own: whether it could load the image.",
)
@click.option(
    "--trust-recorded-command",
    is_flag=True,
    help="Take the command line recorded in the image, where the configuration has none.",
)
@click.option(
    "--trust-image", is_flag=True, help="Prove an image that others could have written, too."
)
@pass_globals
def command(
    given: Globals,
    /,
    image: str,
    guest: str | None,
    program: str | None,
    trust_recorded_command: bool,
    trust_image: bool,
) -> None:
    """Prove that an image can be loaded: into a QEMU that is thrown away.

    That QEMU has the guest's command line, but null disks, networks and consoles in place of the
    guest's, and its processors never run. This command reads the image itself, not the service.
    The image is as before, and so is the guest.
    """
    from mapsave.operations import images, prove

    config = given.config()
    path = images.resolve(image, config)
    request = prove.Request(
        guest=guest,
        program=_found(program) if program is not None else None,
        trust_recorded_command=trust_recorded_command,
        trust_image=trust_image,
    )
    with reporting.reporting(given, "proving", os.path.basename(image)) as report:
        done = local.run(prove.prove(config, path, request, report), given)
    output.result(given, done, _text(done))


def _found(program: str) -> str:
    if (path := shutil.which(program)) is None:
        raise errors.UsageError(f"--with {program!r}: there is no such program")
    return os.path.abspath(path)


def _text(done: Proven) -> str:
    size = units.format_size(done["device_bytes"])
    return "\n".join(
        (
            f"proven: {done['image']} can be loaded by QEMU {done['qemu']['version']} as guest "
            f"{done['guest']}: {len(done['devices'])} devices, {size} of state, in "
            f"{units.format_duration(done['duration_s'])}",
            *output.warnings(done["warnings"]),
        )
    )
