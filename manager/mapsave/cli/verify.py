"""``mapsave verify IMAGE...``."""

import click

from mapsave import errors, units
from mapsave.cli import hosts, output
from mapsave.cli.here import Result
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("verify", cls=Command)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@pass_globals
def command(given: Globals, /, images: tuple[str, ...]) -> int:
    """Verify that images are complete: superblock, metadata, structure, bitmaps, description.

    Exits with the code of the first image that is not.
    """
    from mapsave.operations.images import resolve

    config = given.config()
    found: list[Result] = []
    code = 0
    for name in images:
        path = resolve(name, config)
        try:
            found.append(hosts.choose(given, config, image=name).verify(name))
        except errors.MapsaveError as error:
            if len(images) == 1:
                raise
            code = code or error.exit_code
            found.append({"image": path, "valid": False, "error": error.as_dict()})
    data = found[0] if len(images) == 1 else {"images": found}
    output.result(given, data, "\n".join(_line(each) for each in found))
    return code


def _line(found: Result) -> str:
    if not found["valid"]:
        return f"{found['image']}: INVALID: {output.described(found['error'])}"
    size = units.format_size(found["data_bytes"])
    lines = [
        f"{found['image']}: valid ({found['state']}, {found['format']}, {size} of RAM contents)"
    ]
    return "\n".join([*lines, *output.warnings(found["warnings"])])
