"""``mapsave list``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mapsave import errors, typed, units
from mapsave.cli import candidates, here, hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import responses

if TYPE_CHECKING:
    from mapsave.operations.images import Listing

_UNREADABLE = "unreadable"  # store.EntryState.UNREADABLE, without what that module loads
_NOTE = 30  # characters
# What an image is sorted by; those that are equal stay in the order of their changes.
_SORTED: dict[str, Callable[[Any], Any]] = {
    "saved": lambda line: line["saved"],
    "guest": lambda line: (line["guest"] is None, line["guest"]),
    "size": lambda line: line["allocated_bytes"],
    "name": lambda line: line["name"],
}
_LARGEST_FIRST = ("saved", "size")


@click.command("list", cls=Command)
@click.argument("directory", required=False, type=click.Path(path_type=Path, readable=False))
@click.option(
    "--libvirt", is_flag=True, help="List libvirt domains, and which of them can be saved."
)
@click.option("--uri", metavar="URI", help="libvirt connection URI (default: qemu:///system).")
@click.option(
    "--guest",
    metavar="GUEST",
    help="Only images of this guest.",
    shell_complete=candidates.GUESTS,
)
@click.option("--latest", is_flag=True, help="Of each guest only the image that was saved last.")
@click.option("--names", is_flag=True, help="Print only the names of the images, one a line.")
@click.option(
    "--sort",
    type=click.Choice(tuple(_SORTED)),
    default="saved",
    show_default=True,
    help="Sort by: the newest first, the largest first, guest or name in alphabetical order.",
)
@pass_globals
def command(
    given: Globals, /, directory: Path | None, libvirt: bool, uri: str | None, **chosen: Any
) -> int:
    """List the images of a directory, newest first: partial and damaged ones too.

    A file that cannot be read is 'unreadable'. If that is so of all of them, the exit code says why
    (7: not permitted).
    """
    if libvirt:
        if directory is not None or chosen["guest"] or chosen["latest"] or chosen["names"]:
            raise errors.UsageError("--libvirt lists domains, not the images of a directory")
        given.refuse_host("'mapsave list --libvirt'")
        _list_domains(given, uri)
        return 0
    if uri is not None:
        raise errors.UsageError("--uri requires --libvirt")
    found = _listing(given, directory, chosen["guest"], latest=chosen["latest"])
    by = chosen["sort"]
    found["images"].sort(key=_SORTED[by], reverse=by in _LARGEST_FIRST)
    images = typed.convert(found["images"], list[responses.Image])
    if chosen["names"]:
        text = "\n".join(line.name for line in images)
    elif images:
        text = _table(images)
    else:
        of_guest = f" of guest {chosen['guest']!r}" if chosen["guest"] else ""
        text = f"no images{of_guest} in {found['directory']}"
    output.result(given, {**found}, text)
    return _report_unreadable(images)


def _list_domains(given: Globals, uri: str | None) -> None:
    from mapsave.cli import local
    from mapsave.guest_address import LIBVIRT_URI
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


def _listing(given: Globals, directory: Path | None, guest: str | None, *, latest: bool) -> Listing:
    if directory is None:
        return hosts.choose(given, given.client_config()).images(guest, latest=latest)
    given.refuse_host("'mapsave list DIRECTORY'")
    return here.Here(given, given.config()).images(guest, latest=latest, directory=directory)


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


def _table(images: list[responses.Image]) -> str:
    """Return a table of images, with notes and what is known of their data if there is any.

    And with what is of each alone, where some share what they occupy.
    """
    with_note = any(line.note for line in images)
    with_data = any(line.verified for line in images)
    with_own = any(line.exclusive_bytes not in (None, line.allocated_bytes) for line in images)
    more = (*(["data"] if with_data else []), *(["note"] if with_note else []))
    more = (*(["exclusive"] if with_own else []), *more)
    header = ("saved", "guest", "state", "format", "size", "on disk", *more, "image")
    rows = [
        _row(line, with_own=with_own, with_note=with_note, with_data=with_data) for line in images
    ]
    return output.table(rows, header)


def _row(
    line: responses.Image, *, with_own: bool, with_note: bool, with_data: bool
) -> tuple[str, ...]:
    own = line.exclusive_bytes
    more = ", pinned" if line.pinned else ""
    more += f", in use by {output.users(line.in_use_by)}" if line.in_use_by else ""
    return (
        units.format_time(line.saved),
        line.guest or "-",
        line.state + more + (", untrusted" if line.writable_by else ""),
        line.format or "-",
        units.format_size(line.file_bytes),
        units.format_size(line.allocated_bytes),
        *(["-" if own is None else units.format_size(own)] if with_own else []),
        *([output.verified(line.verified)] if with_data else []),
        *([_short(line.note)] if with_note else []),
        line.name,
    )


def _short(note: str | None) -> str:
    """Return what of a note fits into a table."""
    line = " ".join((note or "-").split())
    return line if len(line) <= _NOTE else line[: _NOTE - 1] + "…"
