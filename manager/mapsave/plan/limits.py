"""What a save or a restore takes of QEMU's limits, and how many channels fit.

Measured with QEMU 10.0.2, to the last descriptor and thread (``tests/faults/test_limits.py``): a
save takes the two descriptors that it is given, a duplicate for its stream, one for each channel;
and a thread for itself and one for each channel. A restore takes as many descriptors, and a thread
less, which later versions take as well.
"""

import dataclasses

from mapsave import units
from mapsave.monitor.control_groups import Limit
from mapsave.monitor.headroom import Headroom
from mapsave.plan.strategy import MAX_CHANNELS

HANDED_OVER = 2
# For what else QEMU may open in the meantime: a client that connects, a log of dirty memory that
# it shares with a device's process.
_SPARE_DESCRIPTORS = 1
_GUARD = 64 * units.KIB  # of a stack, whatever the size of a page
# The allocations of a migration besides stacks: lists of pages and buffers, 20 MiB with the bitmaps
# of 64 GiB of RAM; what QEMU cannot allocate it aborts for.
_ALLOCATIONS = 32 * units.MIB


@dataclasses.dataclass(frozen=True)
class Need:
    """What is taken of one limit: ``fixed``, and ``each`` for every channel."""

    what: str
    limit: Limit
    fixed: int
    each: int

    def of(self, channels: int) -> int:
        """Return how much ``channels`` take."""
        return self.fixed + self.each * channels

    @property
    def channels(self) -> int:
        """How many channels fit, at most what QEMU takes."""
        return min((self.limit.left - self.fixed) // self.each, MAX_CHANNELS)

    def text(self, channels: int) -> str:
        """Say what is left and what ``channels`` take."""
        left, needed, most = self.limit.left, self.of(channels), self.limit.most
        form = units.format_size if self.what == "memory" else str
        what = self.what.removesuffix("s") if left == 1 else self.what
        return (
            f"{form(left)} {what} left of {form(most)} ({self.limit.name}), "
            f"{plural(channels)} {'needs' if channels == 1 else 'need'} {form(needed)}"
        )

    def as_dict(self, channels: int) -> dict[str, int | str]:
        """Return the figures for ``--json``."""
        found = {"left": self.limit.left, "most": self.limit.most, "needed": self.of(channels)}
        return {"limit": self.limit.name, "what": self.what, **found}


def plural(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def needs(headroom: Headroom, *, workers: int, handed_over: int, own: dict[str, int]) -> list[Need]:
    """Return what a save or a restore takes of each limit that is known.

    ``workers``: threads that QEMU may have to start for its disks. ``handed_over``: how many of
    the descriptors it has already. ``own``: how many threads mapsave itself will take of a limit
    that it shares with QEMU, by the limit's name.
    """
    files, threads = HANDED_OVER - handed_over + 1 + _SPARE_DESCRIPTORS, 1 + workers
    stack = headroom.stack + _GUARD
    return [
        *(Need("open files", limit, files, 1) for limit in headroom.descriptors),
        *(Need("threads", each, threads + own.get(each.name, 0), 1) for each in headroom.threads),
        *(Need("memory", each, threads * stack + _ALLOCATIONS, stack) for each in headroom.memory),
    ]


def tightest(found: list[Need]) -> Need | None:
    """Return the limit into which the fewest channels fit; None where nothing is limited."""
    return min(found, key=lambda need: need.channels, default=None)
