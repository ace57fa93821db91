"""``mapsave diff IMAGE IMAGE|GUEST``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave import units
from mapsave.cli import candidates, check, options, output, reporting
from mapsave.cli.here import Here
from mapsave.cli.options import Globals, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.diff import Block, Difference

_MOST = 20  # ranges that are shown to people, of each block


@click.command("diff", cls=LocalCommand)
@click.argument("image", shell_complete=candidates.IMAGES)
@click.argument("other", metavar="IMAGE|GUEST", shell_complete=candidates.GUESTS_AND_IMAGES)
@options.picture
@pass_globals
def command(given: Globals, /, image: str, other: str, picture: str | None) -> None:
    """Show which pages differ between two images, or an image and a running guest.

    A guest that runs keeps running, and its pages may change while they are compared. Images and
    the guest's memory are read by this command, not by the service. With --json all ranges are
    listed, up to 10,000.
    """
    from mapsave.operations import diff, images

    config = given.config()
    path = images.resolve(image, config)
    if check.is_guest(Here(given, config), config, other):
        from mapsave.cli import local

        with reporting.reporting(given, "comparing", other) as report:
            found = local.run(diff.guest(path, config.guest(other), config, report), given)
    else:
        with reporting.reporting(given, "comparing", image) as report:
            found = diff.images(path, images.resolve(other, config), report)
    if picture is not None:
        output.picture(given, picture, found.drawn())
        return
    output.result(given, found.difference, _text(found.difference))


def _text(found: Difference) -> str:
    state = f" ({found['run_state']})" if found["run_state"] else ""
    lines = [
        f"{found['one']} and {found['other']}{state}: {found['differing_pages']} of "
        f"{found['pages']} pages differ, {units.format_size(found['differing_bytes'])}"
    ]
    for which, names in (("one", found["only_in_one"]), ("other", found["only_in_other"])):
        if names:
            where = found["one"] if which == "one" else found["other"]
            lines.append(f"only in {where}, or of another size there: {', '.join(names)}")
    if found["devices"]:
        lines.append(f"devices whose state differs: {', '.join(found['devices'])}")
    rows = [row for block in found["ram_blocks"] for row in _rows(block)]
    if rows:
        lines += ["", output.table(rows, ("RAM block", "first page", "pages"))]
    if len(rows) < sum(_ranges(block) for block in found["ram_blocks"]):
        lines.append("--json lists all ranges, up to 10,000")
    return "\n".join(lines)


def _rows(block: Block) -> list[tuple[str, ...]]:
    """Return a row for each of the first ranges of a block, and one for all others."""
    shown = block["ranges"][:_MOST]
    rows: list[tuple[str, ...]] = [
        (block["name"], f"0x{each['address']:x}", str(each["pages"])) for each in shown
    ]
    if more := _ranges(block) - len(rows):
        rest = block["differing_pages"] - sum(each["pages"] for each in shown)
        rows.append((block["name"], f"{more} more", str(rest)))
    return rows


def _ranges(block: Block) -> int:
    return len(block["ranges"]) + block["ranges_left_out"]
