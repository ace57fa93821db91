"""``mapsave save GUEST``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from mapsave import units
from mapsave.cli import hosts, local, output
from mapsave.cli.options import Command, Globals, Parsed, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.results import RestoreResult, SaveResult

_WORTH_A_RATE = 64 * units.MIB
_SWITCH = click.Choice(["auto", "on", "off"])


def _channels(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    with contextlib.suppress(ValueError):
        if 1 <= (number := int(value)) <= 255:
            return number
    raise ValueError(f"{value!r} is not 'auto' or a number from 1 to 255")


def _duration(value: Any) -> float:
    if (seconds := units.parse_duration(value)) == 0:
        raise ValueError("must be longer than 0")
    return seconds


CHANNELS = Parsed("1..255|auto", _channels)
# Seconds, or a duration such as 15m; none is 0, as in configuration and service.
DURATION = Parsed("duration", _duration)


@click.command("save", cls=Command)
@click.argument("guest")
@click.option("--image", "-o", metavar="PATH", help="Path, or name in the image directory.")
@click.option(
    "--then",
    type=click.Choice(["quit", "resume", "leave"]),
    help="What to do with the guest afterwards: quit (default), resume it if it was running, "
    "or leave it paused.",
)
@click.option(
    "--format",
    type=click.Choice(["auto", "native", "libvirt"]),
    help="libvirt: also readable by 'virsh restore' (default for libvirt guests).",
)
@click.option(
    "--live",
    is_flag=True,
    default=None,
    help="Keep the guest running while its RAM is written; pause it only at the end.",
)
@click.option("--direct-io", type=_SWITCH, help="Bypass the page cache.")
@click.option("--channels", type=CHANNELS, help="Number of multifd channels.")
@click.option("--zero-pages", type=click.Choice(["auto", "multifd", "legacy", "none"]))
@click.option("--preallocate", type=_SWITCH, help="Preallocate the image's space.")
@click.option("--policy", metavar="NAME", help="Label policy: a name or a YAML file.")
@click.option(
    "--replace",
    is_flag=True,
    help="Replace an existing image of that name once the save is complete.",
)
@click.option(
    "--timeout", type=DURATION, help="Give up after this long; the guest stays as before."
)
@pass_globals
def command(given: Globals, /, guest: str, **chosen: Any) -> None:
    """Save a running guest to an image.

    The guest is told to quit only after the image has been verified and is on stable storage. If
    anything fails before that, the guest returns to the run state it had.
    """
    config = given.config()
    target = config.guest(guest)
    host = hosts.choose(given, config, image_to_be=chosen["image"], policy=chosen["policy"])
    with local.reporting(given, f"saving {target.name}") as report:
        done = host.save(target, chosen, report)
    output.result(given, done.as_dict(), summary(done))


def summary(done: SaveResult) -> str:
    """Return one sentence about a save."""
    ending = {"quit": "shut down", "resume": "resumed"}.get(str(done.then), "left paused")
    size = units.format_size
    return (
        f"saved {done.guest} to {done.image}: {size(done.data_bytes)} of "
        f"{size(done.ram_bytes)} RAM in {units.format_duration(done.duration_s)}"
        f"{rate(done)}, guest {ending}"
    )


def rate(done: SaveResult | RestoreResult) -> str:
    """Return the rate in parentheses; empty where so little was moved that it says nothing."""
    if done.data_bytes < _WORTH_A_RATE:
        return ""
    return f" ({units.format_size(done.bytes_per_s)}/s)"
