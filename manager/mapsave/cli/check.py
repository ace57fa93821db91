"""``mapsave check GUEST|IMAGE``."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from mapsave import errors
from mapsave.cli import local, look, output
from mapsave.cli.options import Command, of
from mapsave.client import connection, delegate
from mapsave.config import ADDRESSES

if TYPE_CHECKING:
    from mapsave.cli.options import Globals
    from mapsave.config import Config, Guest


@click.command("check", cls=Command)
@click.argument("target", metavar="GUEST|IMAGE")
@click.option("--image", "-o", metavar="PATH", help="Where the image would be written.")
@click.option("--policy", metavar="NAME", help="Label policy of the save.")
@click.option("--direct-io", type=click.Choice(["auto", "on", "off"]))
@click.pass_context
def command(context: click.Context, /, target: str, **chosen: Any) -> int:
    """Report what would fail: the save of a guest, or the restore of an image.

    Nothing is touched: the guest keeps running. Exits with the code of the first problem.
    """
    given = of(context)
    config = given.config()
    if _is_guest(given, config, target):
        return _check_guest(given, config, target, chosen)
    return _check_image(given, config, target)


def _is_guest(given: Globals, config: Config, target: str) -> bool:
    """Tell guests from images: a configured name or an address is a guest, a file is an image.

    Of the image directory, which not everybody may look into, the service knows.
    """
    if target in config.guests or target.startswith(ADDRESSES):
        return True
    if asked := connection.image_to_ask_for(config, given, target):
        client, name = asked
        with contextlib.suppress(errors.ImageNotFound):
            client.get(f"/v1/images/{connection.quoted(name)}")
            return False
    from mapsave.operations import images

    if os.path.lexists(images.resolve(target, config)):
        return False
    if "/" in target:
        raise errors.ImageNotFound(f"no image at {target!r}")
    config.guest(target)  # raises, with the nearest name
    return True


def _check_guest(given: Globals, config: Config, target: str, chosen: dict[str, Any]) -> int:
    guest = config.guest(target)
    found, error = _preview(given, config, guest, chosen)
    lines = [
        f"{'ok  ' if line['ok'] else 'FAIL'} {line['check']}: {line['detail']}"
        for line in found["checks"]
    ]
    verdict = "can be saved" if error is None else f"cannot be saved [{error.id}]"
    if error is not None and error.hint:
        lines.append(f"hint: {error.hint}")
    output.result(given, found, "\n".join([*lines, f"{guest.name} {verdict}"]))
    return error.exit_code if error else 0


def _preview(
    given: Globals, config: Config, guest: Guest, chosen: dict[str, Any]
) -> tuple[dict[str, Any], errors.MapsaveError | None]:
    """Let the service check the save where it would do it, else check it here."""
    image = chosen["image"] and connection.image_name(config, chosen["image"], is_read=False)
    wanted = {**{key: value for key, value in chosen.items() if value}, "image": image}
    for_service = image == chosen["image"] or image is not None
    client = None
    if for_service and connection.knows_policy(chosen["policy"]):
        client = connection.service(given, config)
    if client is not None:
        options = {key: value for key, value in wanted.items() if value}
        body = {"kind": "check", "guest": connection.address(guest.name), "check": options}
        found = delegate.perform(client, body)
        error = found.pop("error")
        return found, None if error is None else errors.from_dict(error)
    from mapsave.operations import preview, save_request

    request = save_request.request(config, guest, **chosen)
    return local.run(preview.preview(guest, config, request), given)


def _check_image(given: Globals, config: Config, target: str) -> int:
    found = look.verify(given, config, target)
    known = look.inspect(given, config, target)
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
        lines += ["its domain XML names", *output.names(known)]
    data = {**found, "guest": guest, "launch": startable}
    data |= {key: known[key] for key in ("names", "writable_by")}
    refused = known["writable_by"] != []
    verdict = ["a restore needs --trust-image [image.untrusted]"] if refused else []
    output.result(given, data, "\n".join([*lines, *output.warnings(found), *verdict]))
    return errors.UntrustedImage.exit_code if refused else 0
