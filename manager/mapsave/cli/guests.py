"""``mapsave guests``."""

import click

from mapsave import typed, units
from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import responses
from mapsave.jobs.outcome import Level


@click.command("guests", cls=Command)
@pass_globals
def command(given: Globals, /) -> None:
    """List the guests: how each is, when it was last saved, and to which image.

    They are those of the configuration, libvirt's domains where libvirt can be reached, and those
    that only an image knows. A guest is 'busy' while it is saved or restored.
    """
    found = hosts.choose(given, given.client_config()).guests()
    output.result(given, found, text(typed.convert(found, responses.Guests)))


def text(found: responses.Guests) -> str:
    """Return the guests for people, what could not be asked last."""
    header = ("guest", "state", "last saved", "age", "on disk", "image is", "image")
    lines = [output.table(map(_row, found.guests), header) if found.guests else "no guests"]
    lines += [
        f"warning: guest {each.name}: {output.described(each.error)}"
        for each in found.guests
        if each.error is not None and each.error not in found.unreachable
    ]
    return "\n".join([*lines, *output.warnings(map(output.described, found.unreachable))])


def _row(each: responses.Guest) -> tuple[str, ...]:
    state = each.state or ("-" if each.error is None else output.marked(Level.ERROR, "unknown"))
    if (image := each.last_image) is None:
        return (each.name, state, "never", "-", "-", "-", "-")
    return (
        each.name,
        state,
        units.format_time(image.saved),
        output.since(image.saved),
        units.format_size(image.allocated_bytes),
        image.state,
        image.name,
    )
