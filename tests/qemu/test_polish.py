"""Images are polished before they are committed, and restore equal: gaps filled, zeros dug."""

from pathlib import Path
from typing import Any

import pytest
from mapsave.image import syscalls

from tests.kit import cli, patterns, qemu, ram
from tests.kit.patterns import MIB, PAGE

pytestmark = pytest.mark.usefixtures("images_in_memory")

IMAGE = "it.mapsave"


def saved(site: cli.Site, guest: qemu.Qemu, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save the guest through the page cache; return what ``save`` and ``inspect`` say."""
    save = ("save", guest.address, "--image", IMAGE, "--direct-io", "off", "--json", *options)
    done = site.run(*save, check=0).json()
    assert done["warnings"] == []
    assert site.run("verify", IMAGE, "--json", check=0).json()["warnings"] == []
    return done, site.run("inspect", IMAGE, "--json", check=0).json()


def restores_equal(site: cli.Site, before: ram.Snapshot, memory: str) -> None:
    with qemu.running(machine="none", memory=memory, incoming=True) as waiting:
        into = ("restore", IMAGE, "--into", waiting.address, "--paused", "--json")
        assert site.run(*into, check=0).json()["warnings"] == []
        ram.assert_same(before, waiting.ram)


@pytest.mark.parametrize(
    ("run", "memory", "zero_pages"), [(1, "32M", "multifd"), (4, "128M", "legacy")]
)
def test_short_gaps_are_filled(
    site: cli.Site, tmp_path: Path, run: int, memory: str, zero_pages: str
) -> None:
    pattern = patterns.fragmented(run)
    with qemu.running(machine="none", memory=memory, ram=pattern) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        done, shown = saved(site, guest, "--zero-pages", zero_pages)
    half = done["ram_bytes"] // 2
    assert half - MIB <= shown["data_bytes"] == done["data_bytes"] <= half
    assert half - MIB <= shown["filled_bytes"] <= half
    assert done["allocated_bytes"] < half + 4 * MIB
    assert shown["runs"]["total"] == 1
    assert "of zeros in short gaps" in site.run("inspect", IMAGE, check=0).stdout
    restores_equal(site, before, memory)

    # What becomes a hole later is more than was filled.
    first = shown["ram_blocks"][0]["pages_offset"] + 4 * MIB
    with open(done["image"], "r+b") as file:
        syscalls.punch_hole(file.fileno(), first, 8 * PAGE)
    (warning,) = site.run("verify", IMAGE, "--json", check=0).json()["warnings"]
    assert "4 used pages are in holes of the file" in warning
    assert "a sparse copy turns zeros into holes" in warning


def test_long_runs_of_zeros_are_dug(site: cli.Site, tmp_path: Path) -> None:
    """Nothing is left of them on the disk, nor for the restore to read."""
    with qemu.running(machine="none", memory="64M", ram=patterns.islands(3000, 3000)) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        done, shown = saved(site, guest, "--zero-pages", "none")
    # Each run but for the part of a window at its ends.
    assert done["data_bytes"] < 42 * MIB
    assert done["data_bytes"] <= done["allocated_bytes"] < done["data_bytes"] + 3 * MIB
    assert (shown["data_bytes"], shown["filled_bytes"]) == (done["data_bytes"], 0)
    restores_equal(site, before, "64M")


@pytest.mark.parametrize(
    ("options", "prefer"),
    [(("--live",), "time"), ((), "space")],
    ids=["live", "space"],
)
def test_gaps_that_are_left(site: cli.Site, options: tuple[str, ...], prefer: str) -> None:
    """Where pages may have been written and be zero since, and where it was asked for."""
    site.settings["save"] = {"prefer": prefer}
    site.write()
    with qemu.running(
        machine="none", memory="32M", ram=patterns.fragmented(1), paused=False
    ) as guest:
        _, shown = saved(site, guest, "--zero-pages", "multifd", *options)
    assert shown["filled_bytes"] == 0
    assert shown["runs"]["total"] > 3000
