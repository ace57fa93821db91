"""``python -m mapsave.emulator --qmp PATH --memory 64M``: the emulator without the rest."""

import argparse
import sys
from pathlib import Path

from mapsave import units
from mapsave.emulator.options import PATTERNS, EmulatorOptions, backend
from mapsave.emulator.run import run
from mapsave.emulator.versions import VERSIONS


def main() -> int:
    """Parse the command line and run; usage errors exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m mapsave.emulator")
    parser.add_argument("--qmp", type=Path, required=True)
    parser.add_argument("--memory", type=units.parse_size, required=True)
    parser.add_argument("--pattern", choices=PATTERNS, default="zero")
    parser.add_argument("--incoming", "-incoming", choices=["defer"])
    parser.add_argument("-S", dest="paused", action="store_true")
    parser.add_argument("--writer", action="store_true")
    parser.add_argument("--stale", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--uuid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--throttle", type=units.parse_size, default=0)
    parser.add_argument("--as", dest="version", choices=VERSIONS, default="10.0")
    parser.add_argument("--object", "-object", dest="backend", type=backend)
    parser.add_argument("--machine", "-machine")
    try:
        options = EmulatorOptions(**vars(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
