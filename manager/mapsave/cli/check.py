"""``mapsave check GUEST|IMAGE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import errors, guest_address, units
from mapsave.cli import candidates, hosts, inspect, output
from mapsave.cli.here import Options, Result
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.cli.save import SWITCH
from mapsave.key_types import ADDRESSES
from mapsave.migration.progress import silent

if TYPE_CHECKING:
    from mapsave.config import Config
    from mapsave.operations.checkpoint_forecast import Forecast


@click.command("check", cls=Command)
@click.argument("target", metavar="GUEST|IMAGE", shell_complete=candidates.GUESTS_AND_IMAGES)
@click.option("--image", "-o", metavar="PATH", help="Where the image would be written.")
@click.option(
    "--policy",
    metavar="NAME",
    help="Label policy of the save.",
    shell_complete=candidates.POLICIES,
)
@click.option("--direct-io", type=SWITCH, help="Bypass the page cache.")
@click.option("--checkpoint", is_flag=True, help="Check for a checkpoint instead of a save.")
@pass_globals
def command(given: Globals, /, target: str, checkpoint: bool, **chosen: Any) -> int:
    """Report what would fail: the save of a guest, or the restore of an image.

    Nothing is touched: the guest keeps running. Exits with the code of the first problem.
    """
    config = given.client_config()
    if checkpoint:
        chosen |= {"method": "checkpoint", "then": "resume"}
    if is_guest(hosts.choose(given, config, image=target), config, target):
        return _check_guest(given, config, target, chosen)
    return _check_image(given, config, target)


def is_guest(host: hosts.Host, config: Config, target: str) -> bool:
    """Tell guests from images: a configured name or an address is a guest, a file is an image.

    The service as ``host`` can read the image directory; the caller may not be able to.
    """
    if target in config.guests or target.startswith(ADDRESSES):
        return True
    if "/" in target and guest_address.of_path(target) is not None:
        config.guest(target)  # raises, with the address
    if host.has_image(target):
        return False
    if "/" in target:
        raise errors.ImageNotFound(f"no image at {target!r}")
    config.guest(target)  # raises, with the nearest name
    return True


def _check_guest(given: Globals, config: Config, target: str, chosen: Options) -> int:
    guest = config.guest(target)
    host = hosts.choose(given, config, image_to_be=chosen["image"], policy=chosen["policy"])
    found, error = host.check(guest, chosen)
    lines = [
        f"{'ok  ' if line['ok'] else 'FAIL'} {line['check']}: {line['detail']}"
        for line in found["checks"]
    ]
    lines.append(forecast(found["checkpoint"]))
    verdict = "can be saved" if error is None else f"cannot be saved [{error.id}]"
    if error is not None and error.hint:
        lines.append(f"hint: {error.hint}")
    output.result(given, found, "\n".join([*lines, f"{guest.name} {verdict}"]))
    return error.exit_code if error else 0


def forecast(found: Forecast) -> str:
    """Return a line about a checkpoint of a guest: what it would cost, or why there is none."""
    if found["error"] is not None:
        return f"no checkpoint: {found['error']['message']}"
    pause, outside = (units.format_duration(found[key] or 0) for key in ("pause_s", "outside_s"))
    written = units.format_size(found["written_bytes"] or 0)
    return f"checkpoint: pauses the guest for about {pause}, writes {written}, {outside} besides"


def _check_image(given: Globals, config: Config, target: str) -> int:
    host = hosts.choose(given, config, image=target)
    found = host.verify(target, silent, data=False, add_digests=False)
    known = host.inspect(target)
    guest = known["guest"]
    configured = config.named(guest) if guest else None
    startable = known["has_domain_xml"] or bool(
        configured and (configured.launch or configured.emulator)
    )
    startable = startable or config.is_unread  # then the service knows
    lines = [
        f"{found['image']}: valid, guest {guest}"
        + ("" if startable else "; no 'launch:' configured: restore --into a waiting QEMU")
    ]
    lines += _instant(found["instant"])
    if known["has_domain_xml"] and known["names"]:
        lines += ["its domain XML names", *inspect.names(known)]
    data = {**found, "guest": guest, "launch": startable}
    data |= {key: known[key] for key in ("names", "writable_by")}
    refused = known["writable_by"] != []
    verdict = ["a restore needs --trust-image [image.untrusted]"] if refused else []
    output.result(given, data, "\n".join([*lines, *output.warnings(found["warnings"]), *verdict]))
    return errors.UntrustedImage.exit_code if refused else 0


def _instant(found: Result) -> list[str]:
    """Return lines about whether RAM can be mapped from the image instead of read."""
    if not found["is_possible"]:
        return [f"RAM is read, not mapped: {'; '.join(found['why_not'])}"]
    how = "RAM is mapped from it" if found["is_used"] else "RAM can be mapped from it: --instant on"
    return [
        how,
        "  the guest needs it then as long as it lives: if the image is truncated or its storage "
        "fails, the kernel ends QEMU",
    ]
