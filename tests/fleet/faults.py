"""Have a whole fleet fail in every way: ``python -m tests.fleet.faults [--every N] [--only WORD]``.

Each pair of agent, service, scheduler and database is killed or cut off at each moment of a run;
see ``tests/fleet/world.py``. It prints what came of each case, and exits with 1 if any failed.
"""

import argparse
import collections
import contextlib
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psycopg

from tests.fleet import world

NAMES = ("rack1-a", "rack1-b", "rack1-c")


def chosen(every: int, first: int, only: str) -> list[world.Case]:
    """Return the cases that contain a word, each ``every``-th of them from number ``first`` on."""
    return [case for case in world.cases() if only in str(case)][first::every]


def play_all(cases: list[world.Case]) -> int:
    """Play the cases, one after another in one fleet; return how many failed."""
    failed = 0
    lost = 0
    most = 0
    statuses: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    left = list(cases)
    while left:
        # After a failure in a new one: what is left of the other would be in the way.
        with (
            tempfile.TemporaryDirectory(prefix="msf") as directory,
            world.running(Path(directory), NAMES) as found,
        ):
            while left:
                case = left.pop(0)
                try:
                    result = world.play(found, case)
                except Exception:
                    traceback.print_exc(file=sys.stdout)
                    print(state(found))
                    print(f"FAILED  {case}", flush=True)
                    failed += 1
                    break
                lost += result.was_lost
                most = max(most, result.most)
                statuses.update(result.statuses)
                print(f"{result.seconds:6.1f} s  {case}: {result.statuses}", flush=True)
            samples = found.storage.samples
    print(
        f"{len(cases)} cases, {failed} failed, {time.monotonic() - began:.0f} s; tasks: "
        f"{dict(statuses)}; runs that a copy did not know: {lost}; images written at once: "
        f"{most} of {world.SAVES} ({samples} samples by the last fleet)"
    )
    return failed


def state(found: world.World) -> str:
    """Return what there is to see of a fleet in which a case has failed."""
    lines = []
    with contextlib.suppress(psycopg.Error):
        lines += [f"slot {row}" for row in found.observe("SELECT * FROM slots")]
    for node in found.nodes:
        site = node.host.site
        lines += [f"{node.host.name}: {sorted(path.name for path in site.images.iterdir())}"]
        for log in ("agent.log", "service.log"):
            text = (site.directory / log).read_text().splitlines()
            lines += [f"{node.host.name} {log}: {line}" for line in text[-12:]]
    return "\n".join(lines)


def main() -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="play each N-th case only")
    parser.add_argument("--first", type=int, default=0, help="begin with this one")
    parser.add_argument("--only", default="", help="only cases whose name has this word")
    parser.add_argument("--list", action="store_true", help="list the cases")
    given = parser.parse_args()
    cases = chosen(given.every, given.first, given.only)
    if given.list:
        print(*cases, sep="\n")
        return 0
    return 1 if play_all(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
