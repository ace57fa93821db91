"""``mapsave list``."""

from pathlib import Path

import click
import msgspec

from mapsave import errors, units
from mapsave.cli import here, hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.service.api import responses

_UNREADABLE = "unreadable"  # store.EntryState.UNREADABLE, without what that module loads


@click.command("list", cls=Command)
@click.argument("directory", required=False, type=click.Path(path_type=Path, readable=False))
@click.option(
    "--libvirt", is_flag=True, help="List libvirt domains, and which of them can be saved."
)
@click.option("--uri", metavar="URI", help="libvirt connection URI (default: qemu:///system).")
@pass_globals
def command(given: Globals, /, directory: Path | None, libvirt: bool, uri: str | None) -> int:
    """List the images of a directory, newest first: partial and damaged ones too.

    A file that cannot be read is 'unreadable'. If that is so of all of them, the exit code says why
    (7: not permitted).
    """
    if libvirt:
        if directory is not None:
            raise errors.UsageError("--libvirt lists domains, not the images of a directory")
        _list_domains(given, uri)
        return 0
    if uri is not None:
        raise errors.UsageError("--uri requires --libvirt")
    return _list_images(given, directory)


def _list_domains(given: Globals, uri: str | None) -> None:
    from mapsave.cli import local
    from mapsave.config import LIBVIRT_URI
    from mapsave.operations import domains

    place = uri or LIBVIRT_URI
    found = local.run(domains.domains(given.config(), place), given)
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


def _list_images(given: Globals, directory: Path | None) -> int:
    config = given.config()
    if directory is None:
        found = hosts.choose(given, config).images()
    else:
        found = here.Here(given, config).images(directory)
    images = msgspec.convert(found["images"], list[responses.Image])
    rows = [_row(line) for line in images]
    header = ("saved", "guest", "state", "format", "size", "on disk", "image")
    text = output.table(rows, header) if rows else f"no images in {found['directory']}"
    output.result(given, found, text)
    return _report_unreadable(images)


def _report_unreadable(images: list[responses.Image]) -> int:
    """Warn of images that cannot be read; return the exit code, which is not 0 if all are so."""
    why = [each.error for each in images if each.error and each.state == _UNREADABLE]
    if not why:
        return 0
    count = f"{len(why)} of {len(images)} images"
    output.note(f"warning: {count} cannot be read, the first: {output.described(why[0])}")
    if why[0]["hint"]:
        output.note(f"hint: {why[0]['hint']}")
    return why[0]["exit_code"] if len(why) == len(images) else 0


def _row(line: responses.Image) -> tuple[str, ...]:
    return (
        output.moment(line.modified),
        line.guest or "-",
        line.state + (", untrusted" if line.writable_by else ""),
        line.format or "-",
        units.format_size(line.file_bytes),
        units.format_size(line.allocated_bytes),
        line.name,
    )
