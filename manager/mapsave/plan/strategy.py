"""The strategy of a save or restore: what was chosen for the settings that are ``auto``, and why.

Where guest and directory are known, ``planner`` predicts every way and chooses. Else the choice is
the usual one: direct-io where the directory takes it, eight channels, which look for zero pages
themselves, no preallocation.
"""

from __future__ import annotations

import dataclasses

from mapsave.config import SaveSettings
from mapsave.plan import planner
from mapsave.plan.cost import ReadWay, Way
from mapsave.plan.planner import Learned, LearnedImage
from mapsave.restore_settings import RestoreSettings

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


_ZERO_PAGES = {
    "multifd": "detected by the channels in parallel",
    "legacy": "detected by QEMU's main thread, which keeps the pages in order",
    "none": "to write the zero pages as well is faster than to leave them out",
}
_PREALLOCATE = {
    False: "most guests have zero pages, which need no space",
    True: "writes into space that is there do not wait for each other",
}
_ABOUT = ("reasons", "plan")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What will be done, for each choice the reason, and the plan, if it could be planned."""

    direct_io: bool
    zero_pages: str
    channels: int
    preallocate: bool
    bandwidth: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)
    plan: planner.Plan | None = dataclasses.field(default=None, compare=False)

    @property
    def way(self) -> Way:
        """Return it as a plan has it."""
        return Way(self.direct_io, self.zero_pages, self.channels, self.preallocate)

    def as_dict(self) -> dict[str, bool | int | str]:
        """Return the strategy alone, as ``--json`` and the metadata have it."""
        found = {name: value for name, value in vars(self).items() if name not in _ABOUT}
        found["bandwidth_bytes_per_s"] = found.pop("bandwidth")
        return found

    def fallen_back(self) -> Strategy:
        """Return the strategy of the plan's fallback, which there must be."""
        plan = self.plan
        assert plan is not None and plan.fallback is not None
        way = plan.fallback.way
        return dataclasses.replace(
            self,
            direct_io=way.direct_io,
            zero_pages=way.zero_pages,
            channels=way.channels,
            preallocate=way.preallocate,
            reasons={"plan": f"the next best: {plan.chosen.way.text()}, was far too slow"},
            plan=dataclasses.replace(plan, chosen=plan.fallback, fallback=None),
        )

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


@dataclasses.dataclass(frozen=True)
class ReadStrategy:
    """What a restore will do, and as ``Strategy`` has it."""

    direct_io: bool
    channels: int
    plan: planner.ReadPlan
    reasons: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def is_as_planned(self) -> bool:
        """Whether the plan's prediction is of it."""
        return self.plan.chosen.way == ReadWay(direct_io=self.direct_io, channels=self.channels)

    def as_dict(self) -> dict[str, bool | int]:
        """Return the strategy alone, as ``--json`` has it."""
        return {"direct_io": self.direct_io, "channels": self.channels}

    def limited(self, most: Most | None) -> ReadStrategy:
        """Return it with no more channels than QEMU's limits allow."""
        if most is None:
            return self
        reasons = {**self.reasons, "channels": most.reason}
        return dataclasses.replace(self, channels=most.channels, reasons=reasons)

    def of_stub(self) -> ReadStrategy:
        """Return how what is left of an image is read from memory, its RAM being mapped."""
        reasons = {"instant": "RAM is mapped from the image"}
        return dataclasses.replace(self, direct_io=False, channels=1, reasons=reasons)

    def parameters(self) -> dict[str, bool | int]:
        """Return QEMU's migration parameters for a restore by this strategy."""
        return {"direct-io": self.direct_io, "multifd-channels": self.channels}


def of_checkpoint() -> Strategy:
    """Return how the RAM that is no shared file is written, which is little, and by us."""
    reasons = {"checkpoint": "the RAM file is shared with the image, and not written"}
    return Strategy(
        direct_io=False, zero_pages="legacy", channels=1, preallocate=False, reasons=reasons
    )


def choose_read(
    settings: RestoreSettings, learned: LearnedImage, *, takes_direct: bool, shared: Most | None
) -> ReadStrategy:
    """Choose how to read an image; an explicit setting wins.

    ``takes_direct``: whether its file system does direct reads. ``shared``: how many channels are
    left to this guest, where there are others.
    """
    most = shared.channels if shared is not None else None
    bounds = planner.Bounds(takes_direct=takes_direct, most_channels=most)
    found = planner.plan_read(settings, learned, bounds)
    way, reasons = found.chosen.way, {"plan": found.reason}
    if settings.direct_io == "auto":
        reasons["direct_io"] = "the image's file system supports direct I/O"
        if not takes_direct:
            reasons["direct_io"] = "the image's file system does not support direct I/O"
        elif not way.direct_io:
            reasons["direct_io"] = "the page cache suits this image better"
    if settings.channels == "auto":
        reasons["channels"] = "enough requests in flight for this image"
        if shared is not None and way.channels == shared.channels:
            reasons["channels"] = shared.reason
    return ReadStrategy(way.direct_io, way.channels, found, reasons)


def choose(
    settings: SaveSettings,
    *,
    bandwidth: int = 0,
    direct_io_refusal: str | None = None,
    most: Most | None = None,
    learned: Learned | str | None = None,
) -> Strategy:
    """Choose the strategy for ``settings`` and ``bandwidth``, in bytes per second, 0 for no limit.

    ``direct_io_refusal``: why the directory takes no direct writes. ``most``: what QEMU's limits
    allow, where that is little. ``learned``: of guest and directory; where it says why nothing is
    known, the choice is the usual one. An explicit setting wins; preflight checks whether it is
    possible.
    """
    reasons = {}
    found = None
    way = _usual(settings, direct_io_refusal)
    if settings.direct_io == "auto":
        reasons["direct_io"] = direct_io_refusal or "the directory supports direct I/O"
    if settings.channels == "auto":
        reasons["channels"] = "enough requests in flight for one disk"
        if bandwidth:
            way = dataclasses.replace(way, channels=LIMITED_CHANNELS)
            reasons["channels"] = "few, to stay within the bandwidth limit"
        if most is not None and most.channels < way.channels:
            way = dataclasses.replace(way, channels=most.channels)
            reasons["channels"] = most.reason
    if isinstance(learned, Learned):
        bounds = planner.Bounds(
            takes_direct=direct_io_refusal is None,
            bandwidth=bandwidth,
            channels=LIMITED_CHANNELS if bandwidth else None,
            most_channels=most.channels if most is not None else None,
        )
        found = planner.plan(settings, learned, bounds)
        way, reasons["plan"] = found.chosen.way, found.reason
        if settings.direct_io == "auto" and direct_io_refusal is None and not way.direct_io:
            reasons["direct_io"] = "the page cache suits this guest's memory better"
    elif learned is not None:
        reasons["plan"] = f"the usual choice: {learned}"
    if settings.zero_pages == "auto":
        reasons["zero_pages"] = _ZERO_PAGES[way.zero_pages]
    if settings.preallocate == "auto":
        reasons["preallocate"] = _PREALLOCATE[way.preallocate]
    return Strategy(
        direct_io=way.direct_io,
        zero_pages=way.zero_pages,
        channels=way.channels,
        preallocate=way.preallocate,
        bandwidth=bandwidth,
        reasons=reasons,
        plan=found,
    )


def _usual(settings: SaveSettings, direct_io_refusal: str | None) -> Way:
    """Return what suits most guests, where nothing is known of this one."""
    auto = direct_io_refusal is None
    return Way(
        direct_io=settings.direct_io == "on" or (settings.direct_io == "auto" and auto),
        zero_pages="multifd" if settings.zero_pages == "auto" else settings.zero_pages,
        channels=DEFAULT_CHANNELS if settings.channels == "auto" else settings.channels,
        preallocate=settings.preallocate == "on",
    )
