"""``mapsaved``: the service's entry point."""

from __future__ import annotations

import sys

from manager import errors
from manager.cli import options, output


def main() -> None:
    """Say that this version has no service yet, and exit with 2."""
    error = errors.Unsupported(
        "this version has no service yet",
        hint="run jobs by hand or by a timer: mapsave job run FILE",
    )
    sys.exit(output.failure(error, options.Globals()))
