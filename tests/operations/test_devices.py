"""Devices and machines that no image can hold, as QEMU lists them."""

import pytest
from mapsave.operations import devices
from mapsave.operations.devices import Device

BESIDE_RAM = "saves in iterations beside RAM"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("pseries-10.0", "hash page table"),
        ("pseries-rhel9.6.0", "hash page table"),
        ("s390-ccw-virtio-10.0", "storage attributes"),
    ],
)
def test_machines_with_state_in_iterations(machine: str, words: str) -> None:
    """Seen with QEMU 10.0.2: the stream has spapr/htab, and s390-storage_attributes."""
    (reason,) = devices.unsavable(machine, [])
    assert repr(machine) in reason.text and words in reason.text and BESIDE_RAM in reason.text
    assert "without mapped-ram" in reason.hint


@pytest.mark.parametrize("kind", ["vfio-pci", "vfio-pci-nohotplug"])
def test_assigned_devices_that_qemu_does_not_block(kind: str) -> None:
    (reason,) = devices.unsavable("pc-q35-10.0", [Device("hostdev0", kind)])
    assert f"'hostdev0' ({kind})" in reason.text and BESIDE_RAM in reason.text


def test_all_others() -> None:
    kinds = ("virtio-blk-pci", "nvme-ns", "nvme-subsys", "virtio-net-pci", "vfio-ccw")
    found = [Device(kind, kind) for kind in kinds]
    for machine in ("pc-q35-10.0", "pc-i440fx-11.1", "microvm", "virt-10.0", "none", "powernv10"):
        assert not list(devices.unsavable(machine, [*found, Device("n", "nvme", "disk")]))
