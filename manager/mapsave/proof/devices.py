"""The devices of a throwaway QEMU beside those of the image: one more is loaded without a word.

QEMU refuses a section that no device wants, and says nothing of a device that gets none (10.0,
``migration/savevm.c``). What it would save itself, once it is loaded, shows which it has.
"""

import os
from collections.abc import Sequence

from mapsave import errors
from mapsave.image import descriptors, mapped_ram
from mapsave.image.mapped_ram import DeviceSection
from mapsave.migration import device_states
from mapsave.monitor import fdset
from mapsave.monitor.session import Session


async def added(session: Session, saved: Sequence[DeviceSection]) -> list[str] | None:
    """Return the devices that the image does not have; None where QEMU cannot say.

    Raises MonitorError.
    """
    made = os.memfd_create("mapsave-devices", os.MFD_CLOEXEC)
    with descriptors.closing(made), descriptors.reopened(made, os.O_WRONLY) as writable:
        number = fdset.free_id(await fdset.query(session))
        if not await device_states.written(session, writable, number, errors.LabelRefused):
            return None
        found = mapped_ram.read_devices(made, os.fstat(made).st_size)
    known = {(device.name, device.instance) for device in saved}
    return [each.name for each in found if (each.name, each.instance) not in known]
