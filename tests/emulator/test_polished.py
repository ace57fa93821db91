"""Images of emulated guests are polished as those of QEMU are, and the emulator restores them."""

from pathlib import Path

from tests.kit import cli, storage
from tests.kit.emulated import emulated
from tests.kit.patterns import MIB
from tests.kit.ram import assert_same


def test_filled_gaps_restore_equal(site: cli.Site, tmp_path: Path) -> None:
    """The emulator reads zeros where the bitmap says so, as QEMU does."""
    with storage.tmpfs(200 * MIB, tmp_path) as place:
        image = place / "it"  # in memory, for to remove a file of many pieces takes a disk seconds
        _saved_and_restored(site, tmp_path, image)


def _saved_and_restored(site: cli.Site, tmp_path: Path, image: Path) -> None:
    with emulated(tmp_path / "s", "--pattern", "fragmented", "-S", memory="64M") as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        save = ("save", guest.address, "-o", image, "--zero-pages", "multifd")
        site.run(*save, check=0)
    assert site.run("inspect", image, "--json", check=0).json()["filled_bytes"] > 16 * MIB
    assert site.run("verify", image, "--json", check=0).json()["warnings"] == []
    with emulated(tmp_path / "d", "--incoming", "defer", memory="64M") as waiting:
        site.run("restore", image, "--into", waiting.address, "--paused", check=0)
        assert_same(before, waiting.snapshot_ram(tmp_path / "after"))
