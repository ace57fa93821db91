"""``python -m tests.bench [--quick | --dense SIZE] [--rounds N] [--directory DIR] [NAME…]``.

Or ``python -m tests.bench matrix`` or ``fleet``, which have options of their own.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from mapsave import units

from tests.bench import cases, guests, table

_ALL = {**cases.CASES, **cases.NAMED}


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=cases.__doc__,
        epilog="'python -m tests.bench matrix' and 'fleet' have options of their own: see --help.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_ALL)}")
    parser.add_argument("--quick", action="store_true", help="a dense guest of 1 GiB, not 4")
    parser.add_argument("--dense", type=units.parse_size, help="size of the dense guest: 512M")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where images go")
    given = parser.parse_args()
    if unknown := set(given.names) - set(_ALL):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if shutil.which(guests.QEMU) is None:
        parser.error(f"there is no {guests.QEMU}, which the benchmarks measure with")
    if "libvirt" in given.names:
        # What it loads would be counted in the peaks of the others.
        reason = _no_libvirt() if given.names == ["libvirt"] else "libvirt is measured alone"
        if reason:
            parser.error(reason)
    return given


def _no_libvirt() -> str | None:
    from tests.kit import libvirtd

    return libvirtd.unavailable()


def main() -> int:
    """Measure what was named, or all, and print the table as it grows; 1 if a target is missed."""
    if sys.argv[1:2] == ["matrix"]:
        from tests.bench import matrix

        return matrix.main(sys.argv[2:])
    if sys.argv[1:2] == ["fleet"]:
        from tests.bench import fleet

        return fleet.main(sys.argv[2:])
    given = parsed()
    missed = 0
    with (
        tempfile.TemporaryDirectory(prefix="mapsave-bench-", dir=given.directory) as directory,
        tempfile.TemporaryDirectory(prefix="mapsave-", dir="/tmp") as short,
    ):
        site = guests.Site(Path(directory), Path(short) / "qmp")
        wanted = given.dense or (guests.GIB if given.quick else 4 * guests.GIB)
        size = guests.affordable(site.directory, wanted)
        print(table.machine())
        print(f"{given.rounds} rounds, images in {given.directory}")
        if size < wanted:
            print(f"memory or disk is short: the dense guest has {size / guests.GIB:g} GiB")
        print("", table.head(), sep="\n")
        bench = cases.Bench(site, size, given.rounds)
        for name in given.names or cases.CASES:
            for row in _ALL[name](bench):
                print(table.line(row.cells()), flush=True)
                missed += row.met is False
        print(f"\nload at the end {os.getloadavg()[0]:.1f}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
