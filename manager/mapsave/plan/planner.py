"""Choose how to save or restore: predict every way that the settings allow, and take the best."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from mapsave import units
from mapsave.config import SaveSettings
from mapsave.plan import correction, cost
from mapsave.plan.correction import P
from mapsave.plan.cost import Prediction, ReadPrediction, ReadWay, Way
from mapsave.plan.layout import PAGE, Layout, Stored
from mapsave.plan.probe import Probe
from mapsave.restore_settings import RestoreSettings

# In the order of preference among those that are as fast.
_ZERO_PAGES = ("multifd", "legacy", "none")
# Each channel writes one request at a time, so channels are the queue depth. More than the usual
# eight gain little, and QEMU's limits were asked for these.
_CHANNELS = (8, 4)
# A restore's small reads gain by more of them; through the page cache they make little difference.
_READ_CHANNELS = (16, 8, 4)
_CACHED_READ_CHANNELS = (16,)
READ_DEPTH = max(_READ_CHANNELS)
# A way that writes requests of so many bytes on the average is limited by how much it writes, and
# where that is slow no other way is faster that writes much more.
_LARGE_REQUESTS, _MUCH_MORE = 64 * units.KIB, 1.25
# Ways that are so near to the fastest count as equal: the smaller file is taken then.
_NEAR, _NEAR_SECONDS = 1.1, 0.02


@dataclasses.dataclass(frozen=True)
class Learned:
    """What is known of the guest's RAM and of the directory.

    ``free_bytes`` None: the file system does not report it. ``in_memory``: it is a tmpfs.
    ``factors``: what earlier saves have shown of the predictions.
    """

    layout: Layout
    probe: Probe
    free_bytes: int | None = None
    in_memory: bool = False
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LearnedImage:
    """What is known of an image and of its file system; ``factors`` as in ``Learned``."""

    stored: Stored
    probe: Probe
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What is settled otherwise.

    ``bandwidth`` in bytes per second, 0 for no limit. ``channels``: how many there are to be;
    ``most_channels``: how many QEMU's limits allow.
    """

    takes_direct: bool = True
    bandwidth: int = 0
    channels: int | None = None
    most_channels: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The way that was chosen, why, and what the others would take, the fastest first.

    ``fallback``: what to take where the choice is far slower than its ``course`` (``cost.course``);
    None where there is no other of another kind, or the directory was not measured.
    """

    chosen: Prediction
    reason: str
    others: tuple[Prediction, ...]
    course: tuple[float, ...] = ()
    fallback: Prediction | None = None


@dataclasses.dataclass(frozen=True)
class ReadPlan:
    """The way to read that was chosen, why, and what the others would take, the fastest first."""

    chosen: ReadPrediction
    reason: str
    others: tuple[ReadPrediction, ...]


def plan(settings: SaveSettings, learned: Learned, bounds: Bounds) -> Plan:
    """Choose a way for ``settings``; what they say themselves is as they say."""
    layout, probe = learned.layout, learned.probe
    predicted = [_predicted(learned, bounds, way) for way in _ways(settings, learned, bounds)]
    smallest = min(each.file_bytes for each in predicted)
    most = _most_bytes(settings, learned, smallest)
    allowed = [each for each in predicted if most is None or each.file_bytes <= most]
    reason = "the fastest"
    if not allowed:
        allowed = [each for each in predicted if each.file_bytes == smallest]
        reason = "the smallest: none is within max_file_bytes and the free space"
    elif settings.prefer == "space" or learned.in_memory:
        allowed = [each for each in allowed if each.file_bytes <= smallest * _NEAR]
        reason = "the fastest of the smallest"
    elif len(allowed) < len(predicted):
        reason = "the fastest within max_file_bytes and the free space"
    near = _near_fastest(allowed)
    chosen = min(near, key=lambda each: each.file_bytes)
    if chosen.seconds > min(each.seconds for each in near):
        reason = f"smaller than {reason}, and as fast"
    filled = f"{layout.filled:.0%} of the RAM has contents ({layout.source})"
    return Plan(
        chosen,
        f"{reason}: predicted {units.format_duration(chosen.seconds)}; {filled}; {_about(probe)}",
        _others(predicted, chosen),
        cost.course(layout, probe, chosen),
        _fallback(chosen, allowed) if probe.is_measured else None,
    )


def plan_read(settings: RestoreSettings, learned: LearnedImage, bounds: Bounds) -> ReadPlan:
    """Choose a way to read an image; what ``settings`` say themselves is as they say.

    Among those that are as fast, one that leaves the page cache to others, by the fewest channels.
    """
    stored, probe = learned.stored, learned.probe
    predicted = [
        correction.corrected(cost.predict_read(stored, probe, way), learned.factors)
        for way in _read_ways(settings, probe, bounds)
    ]
    near = _near_fastest(predicted)
    chosen = min(near, key=lambda each: (not each.way.direct_io, each.way.channels))
    best = min(each.seconds for each in near)
    reason = "the fastest" if chosen.seconds == best else "as fast as any other"
    runs = f"{units.format_size(chosen.read_bytes)} to read, "
    runs += f"{units.format_size(round(stored.run * PAGE))} at a time on the average"
    cached = f", {stored.cached:.0%} in the page cache" if stored.cached >= 0.01 else ""
    return ReadPlan(
        chosen,
        f"{reason}: predicted {units.format_duration(chosen.seconds)}; {runs}{cached}; "
        f"{_about(probe)}",
        _others(predicted, chosen),
    )


def _near_fastest(predicted: Sequence[P]) -> list[P]:
    """Return those that count as equally fast, in their order."""
    best = min(each.seconds for each in predicted)
    return [each for each in predicted if each.seconds <= max(best * _NEAR, best + _NEAR_SECONDS)]


def _others(predicted: Sequence[P], chosen: P) -> tuple[P, ...]:
    return tuple(sorted((each for each in predicted if each != chosen), key=lambda p: p.seconds))


def _about(probe: Probe) -> str:
    known = "measured" if probe.is_measured else "typical; run 'mapsave probe' to measure them"
    return f"the disk's figures are {known}"


def _fallback(chosen: Prediction, allowed: list[Prediction]) -> Prediction | None:
    """Return the next best way, where the choice turns out to be slow for a reason of its own."""
    is_large = chosen.written_bytes >= chosen.requests * _LARGE_REQUESTS
    most = chosen.written_bytes * _MUCH_MORE
    found = [
        each
        for each in allowed
        if not each.way.preallocate  # QEMU would give the space back
        and (
            each.way.direct_io != chosen.way.direct_io
            or (each.way.zero_pages != chosen.way.zero_pages and not is_large)
        )
        and (each.written_bytes <= most or not is_large)
    ]
    return min(found, key=lambda each: each.seconds, default=None)


def _predicted(learned: Learned, bounds: Bounds, way: Way) -> Prediction:
    found = cost.predict(learned.layout, learned.probe, way)
    found = correction.corrected(found, learned.factors)
    least = found.written_bytes / bounds.bandwidth if bounds.bandwidth else 0.0
    return dataclasses.replace(found, seconds=max(found.seconds, least))


def _most_bytes(settings: SaveSettings, learned: Learned, smallest: int) -> int | None:
    """Return how large a file may be: others need the free space as well, so half is left."""
    limits = [settings.max_file_bytes] if settings.max_file_bytes else []
    if learned.free_bytes is not None:
        limits.append(max(smallest, (smallest + learned.free_bytes) // 2))
    return min(limits, default=None)


def _ways(settings: SaveSettings, learned: Learned, bounds: Bounds) -> Iterator[Way]:
    direct = (True, False) if bounds.takes_direct and learned.probe.holes else (False,)
    if settings.direct_io != "auto":
        direct = (settings.direct_io == "on",)
    channels = _channels(settings, _CHANNELS, bounds)
    zero_pages = _ZERO_PAGES if settings.zero_pages == "auto" else (settings.zero_pages,)
    for each in itertools.product(direct, zero_pages, channels):
        preallocate: tuple[bool, ...] = (settings.preallocate == "on",)
        # Into preallocated space the page cache writes no faster.
        if settings.preallocate == "auto" and each[0] and learned.probe.preallocated:
            preallocate = (False, True)
        for choice in preallocate:
            yield Way(direct_io=each[0], zero_pages=each[1], channels=each[2], preallocate=choice)


def _read_ways(settings: RestoreSettings, probe: Probe, bounds: Bounds) -> Iterator[ReadWay]:
    direct = (True, False) if bounds.takes_direct and probe.reads else (bounds.takes_direct,)
    if settings.direct_io != "auto":
        direct = (settings.direct_io == "on",)
    for choice in direct:
        usual = _READ_CHANNELS if choice else _CACHED_READ_CHANNELS
        for number in _channels(settings, usual, bounds):
            yield ReadWay(direct_io=choice, channels=number)


def _channels(
    settings: SaveSettings | RestoreSettings, usual: tuple[int, ...], bounds: Bounds
) -> tuple[int, ...]:
    """Return the numbers of channels that are allowed, those of ``usual`` if nothing else is."""
    if settings.channels != "auto":
        return (settings.channels,)
    if bounds.channels is not None:
        usual = (bounds.channels,)
    if (most := bounds.most_channels) is not None:
        return tuple(each for each in usual if each <= most) or (most,)
    return usual
