"""How an image is loaded into a QEMU that is thrown away: options of ``prove`` and ``core``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mapsave import errors
from mapsave.cli import candidates

if TYPE_CHECKING:
    from mapsave.operations import prove

_OPTIONS = (
    click.option(
        "--guest",
        metavar="GUEST",
        shell_complete=candidates.GUESTS,
        help="Load it as this guest (default: the one that was saved).",
    ),
    click.option(
        "--with",
        "program",
        metavar="QEMU",
        help="Take this QEMU in place of the guest's own: whether it could load the image.",
    ),
    click.option(
        "--trust-recorded-command",
        is_flag=True,
        help="Take the command line recorded in the image, where the configuration has none.",
    ),
    click.option(
        "--trust-image", is_flag=True, help="Load an image that others could have written, too."
    ),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def request(
    guest: str | None, program: str | None, trust_recorded_command: bool, trust_image: bool
) -> prove.Request:
    """Return what these options ask for. Raises UsageError where there is no such program."""
    from mapsave.operations import prove

    if program is not None:
        if (path := shutil.which(program)) is None:
            raise errors.UsageError(f"--with {program!r}: there is no such program")
        program = os.path.abspath(path)
    return prove.Request(guest, program, trust_recorded_command, trust_image)
