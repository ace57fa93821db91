"""``mapsave save GUEST``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mapsave import key_types, units
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.options import Command, Globals, Parsed, no_wait, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.results import RestoreResult, SaveResult

_WORTH_A_RATE = 64 * units.MIB
SWITCH = click.Choice(["auto", "on", "off"])


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
NOTE = Parsed("text", key_types.check_note)


# What a checkpoint has as well.
image_option = click.option(
    "--image", "-o", metavar="PATH", help="Path, or name in the image directory."
)
digests_option = click.option(
    "--digests",
    type=click.Choice(["after", "before", "off"]),
    help="Take digests of the image's data once it is committed (default; the service does), "
    "before that, or not at all.",
)
policy_option = click.option(
    "--policy",
    metavar="NAME",
    help="Label policy: a name or a YAML file.",
    shell_complete=candidates.POLICIES,
)
note_option = click.option(
    "--note", type=NOTE, help="A note for the image, which 'list' and 'inspect' show."
)
in_use_option = click.option(
    "--in-use", is_flag=True, help="Replace it even if a guest lives on it."
)


@click.command("save", cls=Command)
@click.argument("guest", shell_complete=candidates.GUESTS)
@image_option
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
    "--managed",
    "managed",
    flag_value="on",
    help="Save to where libvirt keeps managed saves: 'virsh start' restores it.",
)
@click.option(
    "--live",
    is_flag=True,
    default=None,
    help="Keep the guest running while its RAM is written; pause it only at the end.",
)
@click.option(
    "--method",
    type=click.Choice(["save", "checkpoint", "auto"]),
    help="checkpoint: share the guest's RAM file with the image instead of writing it; auto: if "
    "the guest is to run on, or be left, and that is possible.",
)
@click.option("--direct-io", type=SWITCH, help="Bypass the page cache.")
@click.option("--channels", type=CHANNELS, help="Number of multifd channels.")
@click.option(
    "--zero-pages",
    type=click.Choice(["auto", "multifd", "legacy", "none"]),
    help="How to detect zero pages; with none they are written.",
)
@digests_option
@click.option(
    "--prove",
    type=click.Choice(["none", "load", "pages"]),
    help="Prove the image before the guest may go: load it into a QEMU that is thrown away, with "
    "pages compare all of them with the guest's RAM, too.",
)
@click.option(
    "--keep-unproven",
    is_flag=True,
    default=None,
    help="Keep an image that could not be proven, as NAME.unproven.",
)
@click.option("--preallocate", type=SWITCH, help="Preallocate the image's space.")
@policy_option
@note_option
@click.option(
    "--replace",
    is_flag=True,
    help="Replace an existing image of that name once the save is complete.",
)
@in_use_option
@click.option(
    "--timeout", type=DURATION, help="Give up after this long; the guest stays as before."
)
@no_wait
@pass_globals
def command(given: Globals, /, guest: str, no_wait: bool, **chosen: Any) -> None:
    """Save a running guest to an image.

    The guest is told to quit only after the image has been verified and is on stable storage. If
    anything fails before that, the guest returns to the run state it had.
    """
    perform(given, guest, chosen, no_wait=no_wait, doing="saving", text=summary)


def perform(
    given: Globals,
    guest: str,
    chosen: dict[str, Any],
    *,
    no_wait: bool,
    doing: str,
    text: Callable[[SaveResult], str],
) -> None:
    """Save a guest as was ``chosen``, or have the service begin it; print what came of it."""
    config = given.client_config()
    target = config.guest(guest)
    host = hosts.choose(given, config, image_to_be=chosen["image"], policy=chosen["policy"])
    if no_wait:
        output.begun(given, hosts.background(host).begin_save(target, chosen))
        return
    with reporting.reporting(given, doing, target.name) as report:
        done = host.save(target, chosen, report)
    output.result(given, done.as_dict(), text(done))


def summary(done: SaveResult) -> str:
    """Return one sentence about a save."""
    ending = {"quit": "shut down", "resume": "resumed"}.get(str(done.then), "left paused")
    size = units.format_size
    if done.managed:
        ending += "; its next start by libvirt restores it"
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
