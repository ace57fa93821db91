"""The benchmark on libvirt really saves and restores by both, and says what it compares."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import cases, guests, libvirt_cases
from tests.kit import libvirtd, patterns, tree

SIZE = 64 * patterns.MIB


@pytest.mark.timeout(300)  # where init is late, so is every end of a guest
def test_both_are_measured_on_the_host_as_it_is_and_with_prompt_reaping(tmp_path: Path) -> None:
    site = guests.Site(tmp_path, tmp_path / "qmp")
    rows = list(libvirt_cases.rows(cases.Bench(site, SIZE, 1), SIZE))
    assert [(row.what.partition("; ")[2], row.target) for row in rows if "; " in row.what] == [
        ("as this host is", "<= 0.25 x peer"),
        ("as this host is", "<= 0.8 x peer"),
        ("as this host is", "<= 0.65 x peer"),
        ("as this host is", "<= 0.8 x peer"),
        *[("init reaps at once", "")] * 4,
    ]
    for row in rows:
        ratio = float(row.mapsave.split()[0]) / float(row.peer.split()[0])
        assert float(row.ratio) == pytest.approx(ratio, rel=0.05)
        assert row.met is (None if not row.target else float(row.ratio) <= target(row))
    assert list(site.images.iterdir()) == []


def target(row: cases.Row) -> float:
    return float(row.target.split()[1])


def test_a_guest_that_is_not_restored_whole_is_told(tmp_path: Path) -> None:
    site = guests.Site(tmp_path, tmp_path / "qmp")
    with libvirtd.running() as daemon:
        site.describe({"libvirt": {"uri": daemon.uri, "domain": guests.NAME}})
        bench = cases.Bench(site, SIZE, 1)
        empty = libvirt_cases.Guest(bench, daemon, SIZE, dense=False)
        empty.saved("mapsave", keep=True)
        empty.dense = True
        with pytest.raises(AssertionError, match="virsh"):
            empty.restored("virsh", site.images / "mapsave")
        assert daemon.domains() == []


def test_libvirt_is_measured_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--rounds", "1", "libvirt", "help"],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "libvirt is measured alone" in done.stderr
