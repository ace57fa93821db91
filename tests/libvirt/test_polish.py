"""Images whose gaps were filled are as good to libvirt."""

from pathlib import Path

from tests.kit import cli, domain, patterns, ram
from tests.kit.libvirtd import Daemon
from tests.kit.patterns import MIB
from tests.libvirt import ways


def test_filled_gaps_restore_equal(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    pattern = patterns.fragmented(1)
    with domain.running(daemon, memory=32 * MIB, ram=pattern, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        how = ("--zero-pages", "multifd", "--direct-io", "off")
        path = ways.save("libvirt", guest, site, "it", *how)
        shown = site.run("inspect", path, "--json", check=0).json()
        assert shown["filled_bytes"] > 14 * MIB
        assert site.run("verify", path, "--json", check=0).json()["warnings"] == []
        ways.restore("virsh", guest, site, path)
        ram.assert_same(before, guest.ram)
