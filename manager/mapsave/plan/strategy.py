"""The strategy of a save: what was chosen for the settings that are ``auto``, and why.

``choose`` is simple for now: direct-io where the directory takes it, eight channels, QEMU's own
zero-page detection, no preallocation. What it will measure one day comes in as further arguments.
"""

from __future__ import annotations

import dataclasses

from mapsave.config import SaveSettings

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
class Strategy:
    """What will be done, and for each choice the reason."""

    direct_io: bool
    zero_pages: str
    channels: int
    preallocate: bool
    bandwidth: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, bool | int | str]:
        """Return the strategy without its reasons, as ``--json`` and the metadata have it."""
        return {key: value for key, value in vars(self).items() if key != "reasons"}

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


def choose(
    settings: SaveSettings,
    *,
    bandwidth: int = 0,
    direct_io_refusal: str | None = None,
    most: Most | None = None,
) -> Strategy:
    """Choose the strategy for ``settings`` and ``bandwidth``, in bytes per second, 0 for no limit.

    ``direct_io_refusal``: why the directory takes no direct writes. ``most``: what QEMU's limits
    allow, where that is little. An explicit setting wins; preflight checks whether it is possible.
    """
    reasons = {}
    direct_io = settings.direct_io == "on"
    if settings.direct_io == "auto":
        direct_io = direct_io_refusal is None
        reasons["direct_io"] = direct_io_refusal or "the directory supports direct I/O"
    channels = settings.channels
    if channels == "auto":
        channels = LIMITED_CHANNELS if bandwidth else DEFAULT_CHANNELS
        reasons["channels"] = (
            "few, to stay within the bandwidth limit"
            if bandwidth
            else "enough requests in flight for one disk"
        )
        if most is not None and most.channels < channels:
            channels, reasons["channels"] = most.channels, most.reason
    if settings.zero_pages == "auto":
        reasons["zero_pages"] = "detected by the channels in parallel"
    if settings.preallocate == "auto":
        reasons["preallocate"] = "most guests have zero pages, which need no space"
    return Strategy(
        direct_io=direct_io,
        zero_pages="multifd" if settings.zero_pages == "auto" else settings.zero_pages,
        channels=channels,
        preallocate=settings.preallocate == "on",
        bandwidth=bandwidth,
        reasons=reasons,
    )
