"""``mapsave emulate``."""

import os
from pathlib import Path
from typing import Any, get_args

import click

from mapsave import errors, units
from mapsave.cli.options import Globals, LocalCommand, Parsed, pass_globals
from mapsave.config import EmulatedVersion

_SIZE = Parsed("size", units.parse_size)  # bytes, or a size such as 256M


@click.command("emulate", cls=LocalCommand)
@click.option("--qmp", required=True, type=click.Path(path_type=Path), help="Where to listen.")
@click.option("--memory", required=True, type=_SIZE, help="The guest's RAM, for example 256M.")
@click.option(
    "--pattern",
    type=click.Choice(["zero", "random", "sparse", "fragmented", "linux"]),
    default="zero",
    help="The contents of the RAM.",
)
@click.option("--incoming", "-incoming", type=click.Choice(["defer"]), help="Wait for a restore.")
@click.option("--paused", "-S", is_flag=True, help="Do not run the guest at the start.")
@click.option("--writer", is_flag=True, help="Keep changing pages while the guest runs.")
@click.option("--name", help="The guest's name.")
@click.option("--uuid", help="The guest's uuid.")
@click.option("--seed", type=int, default=0, help="Another seed gives other contents.")
@click.option(
    "--as",
    "version",
    type=click.Choice(get_args(EmulatedVersion)),
    default="10.0",
    help="The version of QEMU to emulate.",
)
@click.option(
    "--object",
    "-object",
    "backend",
    metavar="BACKEND",
    help="Map the RAM from a file: memory-backend-file,... with share=on, or with "
    "share=off,readonly=on,rom=off.",
)
@click.option("--machine", "-machine", metavar="OPTIONS", help="memory-backend=ID, of --object.")
@click.option("--throttle", type=_SIZE, default=0, help="Bytes of pages saved per second.")
@pass_globals
def command(given: Globals, /, **chosen: Any) -> None:
    """Run an emulated QEMU: a QMP monitor and real guest RAM, to try things out.

    It saves and restores images that QEMU itself reads, refuses what QEMU refuses with QEMU's
    messages, and crashes where QEMU would.
    """
    from mapsave.emulator import options, run

    try:
        if chosen["backend"] is not None:
            chosen["backend"] = options.backend(chosen["backend"])
        wanted = options.EmulatorOptions(**chosen)
    except ValueError as error:
        raise errors.UsageError(str(error)) from None

    def emulate() -> int:
        try:
            return run.run(wanted)
        except PermissionError as error:
            raise errors.denied(
                f"cannot listen at {chosen['qmp']!r}: {error.strerror}",
                os.path.dirname(chosen["qmp"]) or ".",
                os.W_OK | os.X_OK,
            ) from None

    given.in_main_thread = emulate
