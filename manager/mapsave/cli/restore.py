"""``mapsave restore IMAGE``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mapsave import errors, guest_address, units
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.options import Command, Globals, no_wait, pass_globals
from mapsave.cli.save import CHANNELS, DURATION, SWITCH, rate

if TYPE_CHECKING:
    from mapsave.operations.results import RestoreResult


@click.command("restore", cls=Command)
@click.argument("image", required=False, shell_complete=candidates.IMAGES)
@click.option(
    "--latest",
    metavar="GUEST",
    help="Restore the image of GUEST that was saved last.",
    shell_complete=candidates.GUESTS,
)
@click.option(
    "--into", metavar="qmp:PATH", help="Restore into a QEMU started with -incoming defer."
)
@click.option(
    "--guest",
    metavar="NAME",
    help="Start it as this configured guest.",
    shell_complete=candidates.GUESTS,
)
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
    help="Accept an older QEMU, or another processor or machine, than was saved, and an image that "
    "is known to be damaged.",
)
@click.option(
    "--without-metadata",
    is_flag=True,
    help="Restore an image whose metadata are damaged, to --into or --guest; compares less.",
)
@click.option("--direct-io", type=SWITCH, help="Bypass the page cache.")
@click.option("--channels", type=CHANNELS, help="Number of multifd channels.")
@click.option(
    "--instant",
    type=SWITCH,
    help="Map RAM from the image instead of reading it; auto: if possible, not of libvirt guests.",
)
@click.option(
    "--verify-data",
    is_flag=True,
    default=None,
    help="Compare all data of the image with its digests: before, or beside an instant restore.",
)
@click.option(
    "--warm",
    type=click.Choice(["working-set", "none", "all"]),
    help="What to read into the page cache beside an instant restore (default: working-set).",
)
@click.option(
    "--policy",
    metavar="NAME",
    help="Label policy: a name or a YAML file.",
    shell_complete=candidates.POLICIES,
)
@click.option("--timeout", type=DURATION, help="Give up after this long.")
@no_wait
@pass_globals
def command(
    given: Globals,
    /,
    image: str | None,
    latest: str | None,
    into: str | None,
    run: str | None,
    xml: Path | None,
    no_wait: bool,
    **chosen: Any,
) -> None:
    """Restore a guest from an image: IMAGE, or with --latest the last one of a guest.

    The destination is started by 'launch:' of the guest in the configuration, by the recorded
    command line, or is already waiting; libvirt starts a libvirt guest. The guest is resumed if
    it was running when it was saved.
    """
    if (image is None) == (latest is None):
        raise errors.UsageError("restore needs either IMAGE or --latest GUEST")
    config = given.client_config()
    given_xml = _text(xml, trusted=chosen["trust_image"])
    chosen |= {"into": _socket(into), "run": run or "as-saved", "xml": given_xml}
    host = hosts.choose(given, config, image=image, policy=chosen["policy"])
    wanted = str(image) if latest is None else host.latest(latest)
    if latest is not None:  # it may be a managed save, which is in libvirt's directory
        host = hosts.choose(given, config, image=wanted, policy=chosen["policy"])
    if no_wait:
        output.begun(given, hosts.background(host).begin_restore(wanted, chosen))
        return
    with reporting.reporting(given, "restoring", os.path.basename(wanted)) as report:
        done = host.restore(wanted, chosen, report)
    output.result(given, done.as_dict(), summary(done))


def _socket(into: str | None) -> str | None:
    if into is None:
        return None
    kind, _, path = into.partition(":")
    if kind != "qmp" or not path:
        meant = guest_address.of_path(into)
        hint = f"did you mean {meant!r}?" if meant else None
        raise errors.UsageError(f"--into {into!r}: expected qmp:PATH", hint=hint)
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
        f"restored {done.guest} from {done.image}{', RAM mapped' if done.instant else ''}: "
        f"{units.format_size(done.data_bytes)} in "
        f"{units.format_duration(done.duration_s)}{rate(done)}, "
        f"now {done.run_state} at {done.monitor}{_warmed(done)}"
        + "".join(f"\n{line}" for line in output.warnings(done.warnings))
    )


def _warmed(done: RestoreResult) -> str:
    """Return what was read beside it, if anything was."""
    if done.warm is None or not done.warm["bytes"]:
        return ""
    return f"; {units.format_size(int(str(done.warm['bytes'])))} read into the page cache"
