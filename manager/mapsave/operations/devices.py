"""What of a guest's hardware no image can hold, though QEMU names no blocked reason beforehand.

QEMU writes state that it saves in iterations, as it does RAM, into the stream at any time; an image
of mapped-ram has its pages between, and mapsave reads no such state but RAM. A save of it would
only be found invalid at its end.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mapsave import errors, together
from mapsave.monitor.session import Session

# By the beginning of the machine type (10.0, hw/ppc/spapr.c, hw/s390x/s390-stattrib.c).
_ITERATED = {
    "pseries-": "the hash page table of its processors",
    "s390-ccw-virtio-": "the storage attributes of its pages",
}
# Assigned devices that can be migrated (10.0, hw/vfio/migration.c): QEMU itself blocks the others.
_VFIO = frozenset(("vfio-pci", "vfio-pci-nohotplug"))
_NVME = "nvme"
_SAVED_SO = "which QEMU saves in iterations beside RAM"
_ELSEWHERE = "save the guest by 'virsh save', or by QEMU's 'migrate' without mapped-ram"
# Where QEMU keeps devices of -device and device_add, those with an id and those without.
_PLACES = ("/machine/peripheral", "/machine/peripheral-anon")


class Device(NamedTuple):
    """A device that was added to the machine. ``drive``: of an NVMe controller; "" if it has none.

    Its namespaces may have drives all the same.
    """

    name: str
    type: str
    drive: str | None = None


async def query(session: Session) -> list[Device]:
    """Return the devices that were added to the machine; none where QEMU does not list them."""
    found = []
    listings = await together.all_of(_listed(session, place) for place in _PLACES)
    for place, listed in zip(_PLACES, listings, strict=True):
        for each in listed:
            name, kind = str(each["name"]), str(each["type"])
            if not kind.startswith("child<"):
                continue
            device = Device(name, kind.removeprefix("child<").removesuffix(">"))
            if device.type == _NVME:
                path = {"path": f"{place}/{name}", "property": "drive"}
                device = device._replace(drive=str(await session.execute("qom-get", path)))
            found.append(device)
    return found


async def _listed(session: Session, place: str) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = await session.execute("qom-list", {"path": place})
    except errors.CommandRefused:
        return []
    return listed


class Reason(NamedTuple):
    """Why a guest cannot be saved, and what to do about it."""

    text: str
    hint: str


def unsavable(machine: str, devices: Iterable[Device]) -> Iterator[Reason]:
    """Yield why the guest cannot be saved: a reason for each device, and for its machine type."""
    for beginning, what in _ITERATED.items():
        if machine.startswith(beginning):
            yield Reason(f"its machine {machine!r} has {what}, {_SAVED_SO}", _ELSEWHERE)
    for device in devices:
        named = f"the device {device.name!r} ({device.type})"
        if device.type in _VFIO:
            yield Reason(f"{named} has state, {_SAVED_SO}", f"unplug it, or {_ELSEWHERE}")
        elif device.drive == "":
            # 11.1.3 takes the drive for granted, also beside namespaces that have one (tried);
            # up to 10.0 no NVMe controller can be saved, and QEMU says so.
            yield Reason(
                f"{named} has no drive of its own, and QEMU would crash",
                "unplug it, or give the controller itself a drive (drive=), not by nvme-ns",
            )
