"""The VM generation ID of a guest: another one for each clone.

A guest's system takes a new ID for a sign that it was copied, and renews what must be unique, such
as the seed of its random numbers (Linux: drivers/virt/vmgenid.c). QEMU does not save the ID: after
a load it writes that of its command line into the guest's memory and notifies the guest (QEMU 10.0,
hw/acpi/vmgenid.c, vmgenid_post_load).
"""

import uuid
from collections.abc import Sequence

from mapsave import qemu_options


def renewed(argv: Sequence[str]) -> tuple[str, ...]:
    """Return a QEMU's command line with a new ID for each of its vmgenid devices."""
    words = list(argv)
    for option in qemu_options.options(argv, "device"):
        if option.text("driver") == "vmgenid":
            words[option.at] = option.replaced({**option.properties, "guid": str(uuid.uuid4())})
    return tuple(words)
