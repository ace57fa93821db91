"""SELinux: a checkpoint of a confined guest, whose RAM file has the label of its own disks."""

import os
from pathlib import Path

from tests.kit import cli, memory, patterns, ram
from tests.mac.guest import svirt


def _ram_file(site: cli.Site) -> Path:
    """Make the RAM file as an operator does: of the guest's label, for its owner alone."""
    file = site.images / "web01.ram"
    file.touch(0o600)
    os.truncate(file, 32 << 20)
    svirt.relabel(file, svirt.IMAGE)
    return file


def test_checkpoint_of_a_confined_guest(on_xfs: cli.Site, tmp_path: Path) -> None:
    site, image = on_xfs, on_xfs.images / "one"
    file = _ram_file(site)
    shared = memory.from_file(file, "32M", shared=True)
    with svirt.running(*shared, ram=patterns.sparse) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        done = site.run("checkpoint", "web01", "--image", "one", "--json", check=0).json()
        assert done["label"]["value"] == svirt.IMAGE
        assert done["checkpoint"]["shared_bytes"] > 0
        ram.assert_same(before, guest.ram)
        guest.kill()
        guest.wait()
    assert (svirt.label_of(file), file.stat().st_mode & 0o777) == (svirt.IMAGE, 0o600)
    assert svirt.label_of(image) == svirt.AT_REST
    file.unlink()
    _ram_file(site)
    site.run("restore", image, check=0)
    with guest.successor() as restored:
        assert svirt.context_of(restored.pid) == svirt.GUEST
        ram.assert_same(before, restored.ram)
    assert svirt.refusals("web01.ram") == svirt.refusals("one") == []


def test_a_ram_file_that_mapsave_makes(on_xfs: cli.Site, tmp_path: Path) -> None:
    """It has the guest's own label: of another guest's QEMU the kernel keeps it."""
    site, image = on_xfs, on_xfs.images / "one"
    site.settings["memory"] = {"shared_file": "on"}
    with svirt.running(ram=patterns.sparse) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", "web01", "--image", "one", check=0)
        guest.wait()
    assert site.run("restore", image, "--json", check=0).json()["shared_file"] is True
    with guest.successor() as restored:
        assert svirt.context_of(restored.pid) == svirt.GUEST
        (file,) = memory.unnamed_files(restored)
        assert svirt.label_of(file) == svirt.IMAGE
        ram.assert_same(before, restored.ram)
        done = site.run("checkpoint", "web01", "--image", "two", "--json", check=0).json()
        assert done["checkpoint"]["shared_bytes"] > 0
    assert svirt.label_of(image) == svirt.AT_REST
    assert svirt.refusals("#") == []
