"""A domain that was booted between its save and its restore: its disk is not as it was."""

from pathlib import Path

import pytest

from tests.kit import cli
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, small


def _disk(path: Path) -> str:
    path.write_bytes(bytes(1 << 20))
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )


def _restored(site: cli.Site, guest: Domain) -> list[str]:
    done = site.run("restore", IMAGE, "--guest", guest.address, "--json", check=0).json()
    return list(done["warnings"])


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_disk_that_was_written_to_is_a_warning(
    daemon: Daemon, site: cli.Site, tmp_path: Path, is_changed: bool
) -> None:
    path = tmp_path / "disk"
    with small(daemon, paused=False, transient=False, devices=_disk(path)) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        guest.wait_state("shut off")
        # libvirt sets owners and labels at each start, and QEMU opens the disk.
        guest.virsh("start", "--paused")
        guest.virsh("destroy")
        if is_changed:
            with path.open("r+b") as disk:
                disk.write(b"x")
        checked = site.run("check", IMAGE, "--json", check=0).json()["warnings"]
        said = _restored(site, guest)
    assert said == checked
    assert len(said) == int(is_changed)
    assert all(str(path) in each for each in said)
