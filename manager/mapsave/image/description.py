"""The JSON description of the device state at the end of QEMU's stream.

QEMU itself reads and ignores it. To us it is a second account of the devices in the stream: where
the two differ, the image is damaged or was misread.
"""

import json
import os
import re

from mapsave import errors, units
from mapsave.image.mapped_ram import Stream

# 45 KiB for a q35 of one CPU, some 8 KiB for each more (QEMU 10.0). What is longer than this is not
# read, for a guest of a thousand CPUs is a good one: its account is just not compared.
MAX_COMPARED = 4 * units.MIB


def check(fd: int, stream: Stream) -> None:
    """Raise InvalidImage where the description is not JSON, or names others than the devices."""
    if not 0 < stream.description_length <= MAX_COMPARED:
        return
    raw = os.pread(fd, stream.description_length, stream.description_offset)
    where = f"the JSON description at offset {stream.description_offset}"
    try:
        named = json.loads(raw, object_pairs_hook=_only_names)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidImage(f"{where} is damaged: {error}") from None
    found = [device.name for device in stream.devices]
    if not isinstance(named, list):
        raise errors.InvalidImage(f"{where} does not list the devices")
    if named != found:
        raise errors.InvalidImage(
            f"{where} names {len(named)} devices, the stream has {len(found)}, or their names "
            "differ"
        )


def _only_names(pairs: list[tuple[str, object]]) -> object:
    """Make of a device its name and of the whole the list of its devices.

    Everything else is dropped at once: as Python's objects it would take many times its length.
    """
    members = dict(pairs)
    return members.get("devices", members.get("name"))


def state_names(fd: int, stream: Stream, prefix: str) -> set[str]:
    """Return the names of the parts of devices' state that begin so, as QEMU's source has them.

    Parts that were not needed are not in the stream (``docs/devel/migration/main.rst``). Empty for
    a stream without a description, or with one of more than 4 MiB.
    """
    if not 0 < stream.description_length <= MAX_COMPARED:
        return set()
    raw = os.pread(fd, stream.description_length, stream.description_offset)
    pattern = rb'"vmsd_name":\s*"(' + re.escape(prefix.encode()) + rb'[^"\\]*)"'
    return {name.decode(errors="replace") for name in re.findall(pattern, raw)}
