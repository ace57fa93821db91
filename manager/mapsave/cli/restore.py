"""``mapsave restore IMAGE``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mapsave import errors, units
from mapsave.cli import hosts, local, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.cli.save import CHANNELS, DURATION, rate

if TYPE_CHECKING:
    from mapsave.operations.results import RestoreResult


@click.command("restore", cls=Command)
@click.argument("image")
@click.option(
    "--into", metavar="qmp:PATH", help="Restore into a QEMU started with -incoming defer."
)
@click.option("--guest", metavar="NAME", help="Start it as this configured guest.")
@click.option(
    "--trust-recorded-command",
    is_flag=True,
    help="Start the command line recorded in the image. It runs with your rights.",
)
@click.option(
    "--trust-image",
    is_flag=True,
    help="Accept an image that others could have written, and whatever its XML names.",
)
@click.option(
    "--xml",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="Create the domain from this XML instead of the image's.",
)
@click.option(
    "--through-libvirt",
    is_flag=True,
    help="Let libvirt read the image itself, as 'virsh restore' does.",
)
@click.option(
    "--run", "run", flag_value="run", help="Resume the guest, even if it was saved paused."
)
@click.option("--paused", "run", flag_value="paused", help="Leave the guest paused.")
@click.option("--again", is_flag=True, help="Restore an image that has been restored before.")
@click.option(
    "--force",
    is_flag=True,
    help="Accept an older QEMU, or another processor or machine, than was saved.",
)
@click.option(
    "--without-metadata",
    is_flag=True,
    help="Restore an image whose metadata are damaged, to --into or --guest; compares less.",
)
@click.option("--direct-io", type=click.Choice(["auto", "on", "off"]), default="auto")
@click.option("--channels", type=CHANNELS)
@click.option("--policy", metavar="NAME", help="Label policy: a name or a YAML file.")
@click.option("--timeout", type=DURATION, help="Give up after this long.")
@pass_globals
def command(
    given: Globals,
    /,
    image: str,
    into: str | None,
    run: str | None,
    xml: Path | None,
    **chosen: Any,
) -> None:
    """Restore a guest from an image.

    The destination is started by 'launch:' of the guest in the configuration, by the recorded
    command line, or is already waiting; libvirt starts a libvirt guest. The guest is resumed if
    it was running when it was saved.
    """
    config = given.config()
    if chosen["channels"] == "auto":
        chosen["channels"] = None
    given_xml = _text(xml, trusted=chosen["trust_image"])
    chosen |= {"into": _socket(into), "run": run or "as-saved", "xml": given_xml}
    host = hosts.choose(given, config, image=image, policy=chosen["policy"])
    with local.reporting(given, "restoring") as report:
        done = host.restore(image, chosen, report)
    output.result(given, done.as_dict(), summary(done))


def _socket(into: str | None) -> str | None:
    if into is None:
        return None
    kind, _, path = into.partition(":")
    if kind != "qmp" or not path:
        raise errors.UsageError(f"--into {into!r}: expected qmp:PATH")
    return path


def _text(file: Path | None, *, trusted: bool) -> str | None:
    """Return the XML in ``file``, which others may have written only where it is ``trusted``."""
    if file is None:
        return None
    try:
        with file.open(encoding="utf-8") as opened:
            # What a shell passes by /dev/stdin or /dev/fd has no directory that others could write.
            if not trusted and not os.path.realpath(file).startswith("/proc/"):
                from mapsave.operations import trust

                trust.check_readable_file(file, opened.fileno(), "the file of --xml")
            return opened.read()
    except PermissionError as error:
        raise errors.denied(f"--xml {str(file)!r}: {error.strerror}", file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UsageError(f"--xml {str(file)!r}: {error}") from None


def summary(done: RestoreResult) -> str:
    """Return one sentence about a restore."""
    return (
        f"restored {done.guest} from {done.image}: {units.format_size(done.data_bytes)} in "
        f"{units.format_duration(done.duration_s)}{rate(done)}, "
        f"now {done.run_state} at {done.monitor}"
        + "".join(f"\n{line}" for line in output.warnings(done.warnings))
    )
