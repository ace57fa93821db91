"""``python -m tests.campaign --seeds A-B``: see the package."""

import argparse
import sys
from contextlib import suppress

from tests.campaign import kinds, report


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> int:
    """Run the campaign; return 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, required=True, help="A-B, or A,B,…")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--kind", choices=sorted(kinds.KINDS), help="faults of this kind only")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each run's steps")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    verbose = given.verbose or (len(given.seeds) == 1 and not given.worker)
    if given.worker:
        with suppress(KeyboardInterrupt):
            report.work(given.seeds, given.kind, keep=given.keep, verbose=verbose)
        return 0
    records = report.campaign(given.seeds, given.kind, given.jobs, keep=given.keep, verbose=verbose)
    return int(any(record["violations"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
