"""Run cases by hand: ``python -m tests.mac MODE [ARGUMENT OF PYTEST...]``, such as ``-k name``.

Prints the result of each case, and where the serial line is.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.mac import machine


def main(mode: str, *arguments: str) -> int:
    """Boot once and print what came of it; return how many cases failed."""
    directory = Path(tempfile.mkdtemp(prefix="mapsave-mac-"))
    begun = time.monotonic()
    done = machine.boot([mode], directory, *arguments)[mode]
    for case, (outcome, words, seconds) in done.results.items():
        print(f"{outcome:7} {seconds:5.1f} s {case} {words}")
    print(f"{time.monotonic() - begun:.0f} s, serial line: {directory}/serial")
    return sum(each.outcome != "passed" for each in done.results.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
