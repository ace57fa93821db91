"""Run cases by hand: ``python -m tests.vm MODE[,MODE] [ARGUMENT OF PYTEST...]``.

Prints the result of each case, and where the serial line is.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.vm import machine


def main(modes: str, *arguments: str) -> int:
    """Boot once and print what came of it; return how many cases failed."""
    directory = Path(tempfile.mkdtemp(prefix="mapsave-vm-"))
    begun = time.monotonic()
    boots = machine.boot(modes.split(","), directory, *arguments)
    results = {case: result for boot in boots.values() for case, result in boot.results.items()}
    for case, (outcome, words, seconds) in results.items():
        print(f"{outcome:7} {seconds:5.1f} s {case} {words}")
    print(f"{time.monotonic() - begun:.0f} s, serial line: {directory}/serial")
    return sum(each.outcome != "passed" for each in results.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
