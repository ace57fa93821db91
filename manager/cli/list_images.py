"""``mapsave list``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from manager import units
from manager.cli import output
from manager.cli.options import Command, of

if TYPE_CHECKING:
    from manager.image.store import Entry


@click.command("list", cls=Command)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.pass_context
def command(context: click.Context, /, directory: Path | None) -> None:
    """List the images of a directory, newest first: partial and damaged ones too."""
    from manager.image import store

    given = of(context)
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
