"""``mapsaved``: the service's entry point, ``mapsave serve`` under the name that units know."""

import sys
from typing import NoReturn

from mapsave.cli import start


def main() -> NoReturn:
    """Run the service with the global options of ``mapsave``, and exit as ``mapsave`` does."""
    start.run(["serve", *sys.argv[1:]])
