"""No security module that labels: the kernel stores ``security.selinux`` as any other bytes."""

import os
from pathlib import Path

from tests.kit import cli, patterns, qemu, ram


def test_auto_does_nothing_and_works(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "plain"
    with qemu.running(memory="32M", ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv)
        before = guest.snapshot_ram(tmp_path / "before")
        saved = site.run("save", "web01", "--image", image, "--json", check=0).json()
        guest.wait()
        assert saved["label"]["module"] == "none"
        assert os.listxattr(image) == []
        site.run("restore", image, check=0)
        with guest.successor() as restored:
            ram.assert_same(before, restored.ram)
        assert os.listxattr(image) == []


def test_policy_of_an_absent_module_is_refused(site: cli.Site) -> None:
    image = site.images / "plain"
    with qemu.running(memory="32M") as guest:
        before = guest.state()
        for policy in ("selinux-svirt", "apparmor-qemu"):
            words = ("save", guest.address, "--image", image, "--policy", policy, "--json")
            site.run(*words, check=7).error("label.unavailable")
            assert guest.state() == before
    assert list(site.images.iterdir()) == []
