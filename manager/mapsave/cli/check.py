"""``mapsave check GUEST|IMAGE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mapsave import errors
from mapsave.cli import hosts, inspect, output
from mapsave.cli.here import Options
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.key_types import ADDRESSES

if TYPE_CHECKING:
    from mapsave.config import Config


@click.command("check", cls=Command)
@click.argument("target", metavar="GUEST|IMAGE")
@click.option("--image", "-o", metavar="PATH", help="Where the image would be written.")
@click.option("--policy", metavar="NAME", help="Label policy of the save.")
@click.option("--direct-io", type=click.Choice(["auto", "on", "off"]))
@pass_globals
def command(given: Globals, /, target: str, **chosen: Any) -> int:
    """Report what would fail: the save of a guest, or the restore of an image.

    Nothing is touched: the guest keeps running. Exits with the code of the first problem.
    """
    config = given.config()
    if _is_guest(given, config, target):
        return _check_guest(given, config, target, chosen)
    return _check_image(given, config, target)


def _is_guest(given: Globals, config: Config, target: str) -> bool:
    """Tell guests from images: a configured name or an address is a guest, a file is an image.

    The service can read the image directory; the caller may not be able to.
    """
    if target in config.guests or target.startswith(ADDRESSES):
        return True
    if hosts.choose(given, config, image=target).has_image(target):
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
    verdict = "can be saved" if error is None else f"cannot be saved [{error.id}]"
    if error is not None and error.hint:
        lines.append(f"hint: {error.hint}")
    output.result(given, found, "\n".join([*lines, f"{guest.name} {verdict}"]))
    return error.exit_code if error else 0


def _check_image(given: Globals, config: Config, target: str) -> int:
    host = hosts.choose(given, config, image=target)
    found, known = host.verify(target), host.inspect(target)
    guest = known["guest"]
    configured = config.guests.get(guest)
    startable = known["has_domain_xml"] or bool(
        configured and (configured.launch or configured.emulator)
    )
    lines = [
        f"{found['image']}: valid, guest {guest}"
        + ("" if startable else "; no 'launch:' configured: restore --into a waiting QEMU")
    ]
    if known["has_domain_xml"] and known["names"]:
        lines += ["its domain XML names", *inspect.names(known)]
    data = {**found, "guest": guest, "launch": startable}
    data |= {key: known[key] for key in ("names", "writable_by")}
    refused = known["writable_by"] != []
    verdict = ["a restore needs --trust-image [image.untrusted]"] if refused else []
    output.result(given, data, "\n".join([*lines, *output.warnings(found["warnings"]), *verdict]))
    return errors.UntrustedImage.exit_code if refused else 0
