"""GUEST@HOST on the command line."""

from typing import Any

import click

from mapsave.cli import fleet_options
from mapsave.cli.options import Parsed


def _parsed(word: Any) -> Any:
    from mapsave.fleet import patterns

    return word if isinstance(word, patterns.Pattern) else patterns.parse(word)


argument = click.argument(
    "pattern",
    default="*",
    type=Parsed("pattern", _parsed),
    metavar="[PATTERN]",
    shell_complete=fleet_options.GUESTS_AT,
)
