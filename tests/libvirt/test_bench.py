"""The benchmark on libvirt really saves and restores by all ways, and says what it compares."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import cases, guests, libvirt_cases
from tests.kit import cli, libvirtd, patterns, tree, wait

SIZE = 64 * patterns.MIB


def test_both_ways_of_mapsave_are_compared_with_virsh(tmp_path: Path) -> None:
    site = guests.Site(tmp_path, tmp_path / "qmp")
    rows = list(libvirt_cases.rows(cases.Bench(site, SIZE, 1), SIZE))
    compared = [row for row in rows if "; " in row.what]
    assert [(row.what, row.target) for row in compared] == [
        ("save, idle 0.0625 GiB; through the service", "<= 0.75 x peer"),
        ("save, idle 0.0625 GiB; by the command alone", "<= 0.9 x peer"),
        ("restore, idle 0.0625 GiB; through the service", "<= 1.3 x peer"),
        ("restore, idle 0.0625 GiB; by the command alone", "<= 1.4 x peer"),
        ("save, dense 0.0625 GiB; through the service", "<= 0.95 x peer"),
        ("save, dense 0.0625 GiB; by the command alone", "<= 1.0 x peer"),
        ("restore, dense 0.0625 GiB; through the service", "<= 1.0 x peer"),
        ("restore, dense 0.0625 GiB; by the command alone", "<= 1.05 x peer"),
    ]
    # What the time of a single round is spent on is all of it.
    for first in (row for row in compared if "dense" in row.what):
        after = rows[rows.index(first) + 1 :]
        parts = itertools.takewhile(lambda row: row.what.startswith("    "), after)
        assert sum(map(seconds, parts)) == pytest.approx(seconds(first), abs=0.01)
    assert [row.target for row in rows if row.what == "    beside these" and row.target] == [
        "<= 0.07 s"
    ]
    for row in compared:
        ratio = seconds(row) / float(row.peer.split()[0])
        assert float(row.ratio) == pytest.approx(ratio, rel=0.05)
        assert row.met is (float(row.ratio) <= target(row))


def seconds(row: cases.Row) -> float:
    return float(row.mapsave.split()[0])


def target(row: cases.Row) -> float:
    return float(row.target.split()[1])


def test_a_guest_that_is_not_restored_whole_is_told(tmp_path: Path) -> None:
    site = cli.Site(tmp_path / "site")
    with libvirtd.running() as daemon:
        site.add_guest(guests.NAME, libvirt={"uri": daemon.uri, "domain": guests.NAME})
        empty = libvirt_cases.Guest(site, daemon, SIZE, dense=False)
        empty.saved(libvirt_cases.LOCAL, keep=True)
        empty.dense = True
        with pytest.raises(AssertionError, match="virsh"):
            empty.restored(libvirt_cases.VIRSH)
        assert daemon.domains() == []


def test_libvirt_is_measured_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--rounds", "1", "libvirt", "help"],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        timeout=wait.LONG,
    )
    assert done.returncode == 2
    assert "libvirt is measured alone" in done.stderr
