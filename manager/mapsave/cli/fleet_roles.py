"""What ``mapsave fleet host`` and ``mapsave fleet operator`` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mapsave import errors
from mapsave.cli import output
from mapsave.cli.options import Globals

dsn_file_option = click.option(
    "--dsn-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the connection string to FILE, readable by its owner only; do not print it.",
)


def show(given: Globals, made: dict[str, Any], words: str, dsn_file: Path | None) -> None:
    """Print a role that was made, its connection string the only time there is.

    Raises NotPermitted or UsageError where ``dsn_file`` cannot be written: the string is lost then,
    and made again by the same command.
    """
    dsn = made.get("dsn")
    if dsn is None or dsn_file is None:
        output.result(given, made, f"{words}\n{dsn}" if dsn else words)
        return
    work = f"write the connection string to {str(dsn_file)!r}"
    with errors.explained(
        work, dsn_file, os.W_OK, otherwise=errors.UsageError, hint="repeat it with another FILE"
    ):
        # Of its owner only from the first moment on.
        number = os.open(dsn_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(number, "w", encoding="utf-8") as file:
            file.write(f"{dsn}\n")
    shown = {key: value for key, value in made.items() if key != "dsn"}
    output.result(given, {**shown, "dsn_file": str(dsn_file)}, f"{words}: {dsn_file}")
