"""``mapsave list``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from manager import errors, units
from manager.cli import output
from manager.cli.options import Command, of

if TYPE_CHECKING:
    from manager.cli.options import Globals
    from manager.image.store import Entry


@click.command("list", cls=Command)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--libvirt", is_flag=True, help="List libvirt's domains, and which can be saved.")
@click.option("--uri", metavar="URI", help="Where that libvirt is (default: qemu:///system).")
@click.pass_context
def command(
    context: click.Context, /, directory: Path | None, libvirt: bool, uri: str | None
) -> None:
    """List the images of a directory, newest first: partial and damaged ones too."""
    given = of(context)
    if libvirt:
        if directory is not None:
            raise errors.UsageError("--libvirt lists domains, not the images of a directory")
        _list_domains(given, uri)
        return
    if uri is not None:
        raise errors.UsageError("--uri goes with --libvirt")
    _list_images(given, directory)


def _list_domains(given: Globals, uri: str | None) -> None:
    from manager.cli import running  # and with it asyncio, not for a list of images
    from manager.config import LIBVIRT_URI
    from manager.operations import domains

    place = uri or LIBVIRT_URI
    found = running.run(domains.domains(given.config(), place), given)
    header = ("id", "domain", "state", "can be saved")
    rows = [
        (
            str(line["id"] or "-"),
            line["name"] + ("" if line["persistent"] else " (transient)"),
            line["state"],
            line["error"]["message"] if line["error"] else "yes",
        )
        for line in found
    ]
    text = output.table(rows, header) if rows else f"no domains at {place}"
    output.result(given, {"uri": place, "domains": found}, text)


def _list_images(given: Globals, directory: Path | None) -> None:
    from manager.image import store

    config = given.config()
    with store.directory(directory or config.images, create=directory is None) as held:
        entries = store.entries(held)
    rows = [_row(entry) for entry in entries]
    header = ("saved", "guest", "state", "format", "size", "on disk", "image")
    text = output.table(rows, header) if rows else f"no images in {held.path}"
    output.result(given, {"directory": held.path, "images": [_data(e) for e in entries]}, text)


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.modified)),
        str(entry.guest or "-"),
        entry.state,
        entry.format or "-",
        units.format_size(entry.file_bytes),
        units.format_size(entry.allocated_bytes),
        entry.name,
    )


def _data(entry: Entry) -> dict[str, Any]:
    return {
        "image": entry.path,
        "name": entry.name,
        "guest": entry.guest,
        "state": entry.state,
        "format": entry.format,
        "started": entry.metadata.get("started"),
        "file_bytes": entry.file_bytes,
        "allocated_bytes": entry.allocated_bytes,
        "error": entry.error.as_dict() if entry.error else None,
    }
