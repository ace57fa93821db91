"""Images in libvirt's format, of mapsave and of libvirt itself: moved, virsh restores them."""

from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns, ram
from tests.kit.libvirtd import Daemon
from tests.kit.patterns import MIB
from tests.libvirt import ways


@pytest.mark.parametrize("saver", ["mapsave", "virsh"])
def test_virsh_restores_what_was_imported(
    daemon: Daemon, site: cli.Site, tmp_path: Path, saver: str
) -> None:
    with domain.running(daemon, memory=32 * MIB, ram=patterns.sparse, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        path = ways.save("libvirt" if saver == "mapsave" else "virsh", guest, site, "it")
        archive = tmp_path / "archive"
        site.run("export", path, "-o", archive, check=0)
        away = path.rename(tmp_path / "away")
        done = site.run("import", archive, "-o", path, "--json", check=0).json()
        assert (done["format"], done["state"]) == ("libvirt", "saved")
        assert path.read_bytes() == away.read_bytes()
        ways.restore("virsh", guest, site, path)
        ram.assert_same(before, guest.ram)
