"""The kernel's limits on the QEMU of a domain."""

import os
from pathlib import Path

from mapsave.image import image as images

from tests.kit import cli, domain, libvirtd, limits, patterns, qemu, ram
from tests.kit.libvirtd import Daemon


def channels_of(path: Path) -> int:
    """Return how many channels the save took, by the image's metadata."""
    with images.opened(str(path)) as opened:
        return int(opened.metadata["strategy"]["channels"])


def test_few_descriptors(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """libvirt passes the monitor: a connection of mapsave's takes none."""
    with domain.running(daemon, "few", ram=patterns.sparse) as guest:
        before, known = guest.snapshot_ram(tmp_path / "before"), guest.state()
        limits.lower(guest.pid, "nofile", limits.descriptors(guest.pid) + 6)
        asked = ("save", guest.address, "--image", "x", "--json")
        error = site.run(*asked, "--channels", "3", check=3).error()
        assert error["data"]["limit"] == "RLIMIT_NOFILE"
        assert guest.state() == known
        assert os.listdir(site.images) == []
        site.run(*asked, check=0)
        assert channels_of(site.images / "x") == 2
        site.run("restore", "x", "--guest", guest.address, check=0)
        ram.assert_same(before, guest.ram)


def test_too_few_descriptors(daemon: Daemon, site: cli.Site) -> None:
    with domain.running(daemon, "few", paused=False) as guest:
        limits.lower(guest.pid, "nofile", limits.descriptors(guest.pid) + 3)
        site.run("save", guest.address, "--image", "x", check=3)
        assert guest.state() == "running (unpaused)"


def test_destination_that_libvirt_starts(site: cli.Site, daemon: Daemon) -> None:
    """What ``max_files`` leaves it is asked before it is made to read; then it is destroyed."""
    with domain.running(daemon, "web", kvm=qemu.has_kvm()) as guest:
        used, xml = limits.descriptors(guest.pid), guest.xml()
        site.run("save", guest.address, "--image", "x", check=0)
    definition = site.directory / "web.xml"
    definition.write_text(xml)
    with libvirtd.running(qemu_conf=f"max_files = {used + 3}\n") as strict:
        address = f"libvirt+{strict.uri}#web"
        restoring = ("restore", "x", "--guest", address, "--json")
        error = site.run(*restoring, check=3).error()
        assert error["data"]["limit"] == "RLIMIT_NOFILE"
        assert strict.domains() == []
