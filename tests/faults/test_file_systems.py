"""File systems that work otherwise: missing pages are found, and good images pass.

The others are in ``test_short_writes.py``.
"""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.kit import cli, inject, need, passthrough, patterns, qemu, ram, storage
from tests.kit.passthrough import Ways

pytestmark = pytest.mark.root

IMAGE = "one.mapsave"
MIB = 1 << 20
_CUT = 5 * 4096
# Else KVM counts in a page of the guest how often it has updated the clock there.
_STEADY = ("-cpu", "qemu64,-kvmclock")


def btrfs(directory: Path, options: str) -> AbstractContextManager[Path]:
    need.skip_if(storage.unavailable("btrfs"))
    return storage.loop_filesystem("btrfs", 400 * MIB, directory, options=options)


@pytest.mark.parametrize(
    ("options", "zero_pages"), [("defaults", "legacy"), ("compress-force=zstd", "none")]
)
def test_btrfs(site: cli.Site, tmp_path: Path, options: str, zero_pages: str) -> None:
    with btrfs(tmp_path, options) as place:
        # Writes of the first save alone, some of zeros.
        rule = inject.Rule("pwritev", "short", _CUT, first=10 * MIB, last=42 * MIB, count=20)
        found = _saved(site, place, tmp_path, zero_pages, inject.environment(rule))
        assert found["holes"] == "checked"


def test_user_space_that_makes_holes_of_zeros(site: cli.Site, tmp_path: Path) -> None:
    """Those pages are compared with the guest's RAM."""
    with passthrough.mounted(tmp_path, Ways(zeros=True, short=_CUT)) as place:
        # The kernel goes on where a direct write to user space was short.
        found = _saved(site, place, tmp_path, "none", direct_io="off")
        assert found["holes"] == "checked"
        assert found["compared"] > 1000


def test_user_space_that_can_do_little(site: cli.Site, tmp_path: Path) -> None:
    """It knows no holes, no direct I/O, no exclusive rename and no links."""
    ways = Ways(lseek=False, direct_io=False, rename_flags=False, link=False, short=_CUT)
    with passthrough.mounted(tmp_path, ways) as place:
        found = _saved(site, place, tmp_path, "multifd")
        assert (found["holes"], found["not_compared"]) == ("unknown", 0)


def _saved(
    site: cli.Site,
    place: Path,
    tmp_path: Path,
    zero_pages: str,
    rule: dict[str, str] | None = None,
    direct_io: str = "auto",
) -> dict[str, object]:
    """Save a guest twice, the first time with a short write; return what the second has found."""
    site.settings["images"] = str(place)
    site.write()
    with qemu.running(*_STEADY, env=rule, ram=patterns.islands(300, 200), paused=False) as guest:
        save = ("save", guest.address, "--image", IMAGE, "--json")
        save += ("--zero-pages", zero_pages, "--direct-io", direct_io)
        failed = site.run(*save, check=4).error("save.commit")
        assert failed["data"]["found"]["id"] == "image.pages_missing"
        guest.control.execute("stop")
        before = guest.snapshot_ram(tmp_path / "before")
        done = site.run(*save, check=0).json()
        assert done["warnings"] == []
    site.run("verify", IMAGE, check=0)
    with qemu.running(*_STEADY, incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, check=0)
        ram.assert_same(before, restored.ram)
    written: dict[str, object] = done["written"]
    return written
