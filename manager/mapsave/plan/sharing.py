"""Guests that are saved or restored at once on one file system share its queue.

Each channel has one request in flight, so the channels of all guests together are the queue depth,
and a disk gains little by more than one guest is planned with. So each has its part of that, by
how many there are when it is planned. No one waits, and a QEMU that is at work keeps what it has.
It is known of the operations of this process alone, which are all of a service's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from mapsave.plan.strategy import Most

LEAST = 2  # channels: with one, the disk idles while QEMU looks at what it has read

_present: dict[int, list[Share]] = {}


@dataclasses.dataclass(eq=False)
class Share:
    """The part of one guest. ``was_shared``: another was there at some time."""

    device: int
    was_shared: bool = False

    def most(self, planned: int) -> Most | None:
        """Return its part of ``planned`` channels; None where it is all of them."""
        guests = len(_present.get(self.device, ()))
        if guests < 2 or planned <= LEAST:
            return None
        return Most(
            max(planned // guests, LEAST),
            f"{guests} guests share the {planned} channels that suit their file system",
        )


@contextlib.contextmanager
def joined(fd: int) -> Iterator[Share]:
    """Count a guest on the file system of ``fd`` until the end. Raises OSError."""
    own = Share(os.fstat(fd).st_dev)
    present = _present.setdefault(own.device, [])
    present.append(own)
    if len(present) > 1:
        for each in present:
            each.was_shared = True
    try:
        yield own
    finally:
        present.remove(own)
        if not present:
            del _present[own.device]
