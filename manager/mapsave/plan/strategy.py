"""The strategy of a save: what was asked for, what was chosen, and why.

``choose`` is simple for now: direct-io where the directory takes it, eight channels, QEMU's own
zero-page detection, no preallocation. What it will measure one day comes in as further arguments.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Switch = Literal["auto", "on", "off"]
ZeroPages = Literal["auto", "multifd", "legacy", "none"]

# Each channel writes one request at a time, so channels are the queue depth: more than there are
# cores helps. Beyond eight a disk gains little.
DEFAULT_CHANNELS = 8
# QEMU looks at the limit every tenth of a second and does not count what the channels have under
# way: eight of them exceed 100 MiB/s by a half, two by a fifth (measured with QEMU 10.0).
LIMITED_CHANNELS = 2
MAX_CHANNELS = 255  # QEMU's parameter is a uint8


@dataclasses.dataclass(frozen=True)
class Most:
    """How many channels may be taken without being asked for, and why no more."""

    channels: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user asked for; ``auto`` (or None for channels) leaves the choice to mapsave.

    ``bandwidth`` is in bytes per second; 0 is no limit.
    """

    direct_io: Switch = "auto"
    zero_pages: ZeroPages = "auto"
    channels: int | None = None
    preallocate: Switch = "auto"
    bandwidth: int = 0


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What will be done, and for each choice the reason."""

    direct_io: bool
    zero_pages: str
    channels: int
    preallocate: bool
    bandwidth: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, bool | int | str]:
        """Return the strategy as ``--json`` and the metadata have it."""
        return {
            "direct_io": self.direct_io,
            "zero_pages": self.zero_pages,
            "channels": self.channels,
            "preallocate": self.preallocate,
            "bandwidth": self.bandwidth,
        }

    def parameters(self) -> dict[str, bool | int | str]:
        """Return QEMU's migration parameters for a save by this strategy.

        Bandwidth is always set: QEMU's default of 128 MiB/s throttles file saves as well.
        """
        return {
            "direct-io": self.direct_io,
            "multifd-channels": self.channels,
            "zero-page-detection": self.zero_pages,
            "max-bandwidth": self.bandwidth,
        }


def choose(wishes: Wishes, direct_io_refusal: str | None, most: Most | None = None) -> Strategy:
    """Choose the strategy; ``direct_io_refusal`` says why the directory takes no direct writes.

    ``most``: what QEMU's limits allow, where that is little.

    A wish always wins; whether it can be had is preflight's to say.
    """
    reasons = {}
    direct_io = wishes.direct_io == "on"
    if wishes.direct_io == "auto":
        direct_io = direct_io_refusal is None
        reasons["direct_io"] = direct_io_refusal or "the directory takes direct writes"
    channels = wishes.channels
    if channels is None:
        channels = LIMITED_CHANNELS if wishes.bandwidth else DEFAULT_CHANNELS
        reasons["channels"] = (
            "few, so that the bandwidth is kept to"
            if wishes.bandwidth
            else "enough requests under way for one disk"
        )
        if most is not None and most.channels < channels:
            channels, reasons["channels"] = most.channels, most.reason
    if wishes.zero_pages == "auto":
        reasons["zero_pages"] = "found by the channels, in parallel"
    if wishes.preallocate == "auto":
        reasons["preallocate"] = "most guests have zero pages that need no room"
    return Strategy(
        direct_io=direct_io,
        zero_pages="multifd" if wishes.zero_pages == "auto" else wishes.zero_pages,
        channels=channels,
        preallocate=wishes.preallocate == "on",
        bandwidth=wishes.bandwidth,
        reasons=reasons,
    )
