"""Devices with which QEMU cannot save its guest, be it that it says so or not."""

import os

import pytest

from tests.kit import cli, qemu, raw

DISK = ("-blockdev", "null-co,node-name=disk,size=1048576")
CONTROLLER = ("-device", "nvme,serial=a,id=n0")
NAMESPACE = ("-device", "nvme-ns,bus=n0,drive=disk")
NO_LONGER_BLOCKED = (11, 0)  # tried: 10.0.2 blocks the controller, 11.1.3 does not


@pytest.mark.parametrize(
    "arguments", [CONTROLLER, (*CONTROLLER[:1], "nvme,serial=a"), DISK + CONTROLLER + NAMESPACE]
)
def test_nvme_controller_without_a_drive(site: cli.Site, arguments: tuple[str, ...]) -> None:
    """QEMU 11.1 dies of SIGSEGV when it saves it, also beside a namespace with a drive."""
    with qemu.running(*arguments, paused=False) as guest:
        before = guest.state()
        error = site.run("save", guest.address, "--image", "x", "--json", check=3).error(
            "check.not_migratable"
        )
        assert "nvme" in error["message"]
        assert guest.state() == before
        assert os.listdir(site.images) == []


def test_nvme_controller_with_a_drive(site: cli.Site) -> None:
    with qemu.running(*DISK, "-device", "nvme,serial=a,drive=disk", paused=False) as guest:
        is_blocked = qemu.version(qemu.BINARY) < NO_LONGER_BLOCKED
        site.run("save", guest.address, "--image", "x", check=3 if is_blocked else 0)


def test_raw_nvme_controller_without_a_drive(site: cli.Site) -> None:
    with qemu.running(*CONTROLLER, paused=False) as guest:
        if qemu.version(qemu.BINARY) < NO_LONGER_BLOCKED:
            reasons = guest.control.execute("query-migrate")["blocked-reasons"]
            assert any("nvme" in each for each in reasons)
            return
        raw.configure(guest)
        guest.control.execute("migrate", uri=f"file:{site.images}/image")
        assert guest.wait() == -11
