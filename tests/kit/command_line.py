"""Every command of the command line, as click knows it."""

from collections.abc import Iterator

import click
from mapsave.cli import main


def contexts(
    command: click.Command = main.mapsave, context: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield a context for ``command`` and for each below it."""
    context = context or click.Context(command, info_name="mapsave")
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from contexts(below, click.Context(below, info_name=name, parent=context))
