"""``mapsave inspect IMAGE``."""

import datetime
import sys

import click

from mapsave import units
from mapsave.cli import candidates, hosts, options, output
from mapsave.cli.here import Result
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("inspect", cls=Command)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.option(
    "--xml", is_flag=True, help="Print the domain XML of a libvirt guest, passwords included."
)
@options.picture
@pass_globals
def command(given: Globals, /, image: str, xml: bool, picture: str | None) -> None:
    """Show the contents of an image: guest, state, RAM blocks, and how its used pages are
    distributed.

    A picture has a square for each RAM block, its pages on a Hilbert curve: neighbours in memory
    are neighbours there.
    """
    config = given.client_config()
    if xml:
        from mapsave.operations import images, inspect

        given.refuse_host("'mapsave inspect --xml'")
        path = images.resolve(image, config)
        held = inspect.domain_xml(path)
        if given.json:
            output.result(given, {"image": path, "xml": held}, "")
        else:
            output.say(_printable(held).rstrip("\n") + "\n")
        return
    host = hosts.choose(given, config, image=image)
    if picture is not None:
        output.picture(given, picture, host.picture(image))
        return
    found = host.inspect(image)
    output.result(given, found, text(found))


def _printable(xml: str) -> str:
    """Return the same XML without what a terminal acts upon or cannot show: references instead."""
    safe = "".join(c if c.isprintable() or c in "\n\t" else f"&#{ord(c)};" for c in xml)
    coding = sys.stdout.encoding or "utf-8"
    return safe.encode(coding, "xmlcharrefreplace").decode(coding)


def text(found: Result) -> str:
    """Return an image's contents for people."""
    size = units.format_size
    qemu = found["qemu"] or {}
    lines = [
        f"{found['image']}: {found['state']}, {found['format']} format"
        + (", pinned" if found["pinned"] else ""),
        f"  guest      {found['guest']} ({found['run_state']})"
        + (f", saved {_time(found['started'])}" if found["started"] else ""),
    ]
    if found["in_use_by"]:
        lines.append(f"  in use by  {output.users(found['in_use_by'])}: RAM is mapped from it")
    if found["working_set"]:
        lines.append(f"  touched    {size(found['working_set']['bytes'])} after its restore")
    if found["verified"]:
        lines.append(f"  data       {output.verified(found['verified'])}")
    if found["note"]:
        lines.append(f"  note       {found['note']}")
    if "version" in qemu:
        lines.append(f"  QEMU       {qemu['version']} {qemu.get('package', '')}")
    on_disk = size(found["allocated_bytes"])
    own = found["exclusive_bytes"]
    if own not in (None, found["allocated_bytes"]):
        on_disk = f"{on_disk} ({size(own)} exclusive)"
    lines.append(f"  file       {size(found['file_bytes'])}, {on_disk} on disk")
    if "ram_blocks" not in found:
        return "\n".join(
            [*lines, "  partial: the save has not finished", *output.warnings(found["warnings"])]
        )
    lines += [
        f"  machine    {found['machine']}, {found['cpu'] or 'no processor'}",
        f"  RAM        {size(found['ram_bytes'])}, {size(found['data_bytes'])} not zero",
        f"  devices    {len(found['devices'])}",
        f"  written    {_written(found.get('written'))}",
        *_proven(found.get("proof")),
        *_filled(found["filled_bytes"]),
        *_used(found),
        *output.warnings(found["warnings"]),
        "",
    ]
    blocks = [
        (b["name"], size(b["bytes"]), str(b["used_pages"]), str(b["zero_pages"]))
        for b in found["ram_blocks"]
    ]
    lines.append(output.table(blocks, ("RAM block", "size", "used pages", "zero pages")))
    if found["runs"]["total"]:
        lines += ["", _histogram(found["runs"]["by_length"])]
    return "\n".join(lines)


def _time(timestamp: str) -> str:
    return units.format_time(datetime.datetime.fromisoformat(timestamp))


def _written(record: Result | None) -> str:
    if record is None:
        return "not recorded whether every used page is in data"
    where = "every used page is in data" if record.get("holes") == "checked" else "holes unknown"
    compared, left = record.get("compared"), record.get("not_compared")
    rest = f", {left} not: {record.get('reason')}" if left else ""
    return f"{where}; {compared} ends of writes compared with the guest's RAM{rest}"


def _proven(record: Result | None) -> list[str]:
    """Return the line about how the save has proven the image; none where it has not."""
    if not record:
        return []
    compared = "; all pages are the guest's RAM" if record.get("by") == "pages" else ""
    return [f"  proven     loaded by QEMU {record.get('qemu')}{compared}"]


def _filled(length: int) -> list[str]:
    """Return the line about gaps that were filled; none where none were."""
    if not length:
        return []
    size = units.format_size(length)
    return [f"  filled     {size} of zeros in short gaps are read as well, in long runs"]


def names(found: Result) -> list[str]:
    """Return a line for each program, path and device that the restore of an image would use."""
    return [f"  {each['kind']:<10} {each['name']}" for each in found["names"] or ()]


def _used(found: Result) -> list[str]:
    """Return the lines about what a restore would run and open."""
    if not found["names"]:
        return []
    if found["has_domain_xml"]:
        return ["", "its domain XML names", *names(found)]
    (program,) = (each["name"] for each in found["names"])
    return [f"  command    {program}; run only with --trust-recorded-command"]


def _histogram(lengths: list[dict[str, int]]) -> str:
    most = max(each["runs"] for each in lengths)
    rows = [
        (
            f"{each['pages_from']}-{each['pages_to']}",
            str(each["runs"]),
            "#" * max(1, round(40 * each["runs"] / most)),
        )
        for each in lengths
    ]
    return output.table(rows, ("run of pages", "runs", ""))
