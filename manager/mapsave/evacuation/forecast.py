"""What a save-all would come to: how long each guest takes, and which would not fit."""

from collections.abc import Iterable, Sequence

from mapsave import errors, units
from mapsave.config import Config
from mapsave.evacuation.save_targets import Target
from mapsave.image import store
from mapsave.image.store import Entry

# Smaller images say nothing of a disk: most of their time went into other things.
_TELLING = 64 * units.MIB
_LATEST = 10


def known_rate(config: Config) -> float | None:
    """Return at how many bytes per second guests were saved to the image directory of late.

    The median of its last images; None where there are none to go by.
    """
    try:
        with store.directory(config.images) as held:
            return rate_of(store.entries(held))
    except errors.MapsaveError:
        return None


def rate_of(entries: Iterable[Entry]) -> float | None:
    """Return the median rate of the newest of ``entries``, newest first; None without any."""
    rates = []
    for each in entries:
        size, seconds = each.metadata.get("data_bytes"), each.metadata.get("duration_s")
        if isinstance(size, int) and isinstance(seconds, int | float) and seconds > 0:
            rates += [size / seconds] if size >= _TELLING else []
        if len(rates) == _LATEST:
            break
    return sorted(rates)[len(rates) // 2] if rates else None


def foretell(targets: Sequence[Target], deadline: float | None, rate: float | None) -> None:
    """Set the ``seconds`` of the guests that would be saved, and report those that would not fit.

    The disk is taken for the limit, so that guests side by side are no faster than one by one.
    """
    if rate is None:
        return
    used = 0.0
    for target in targets:
        if target.outcome != "planned":
            continue
        target.seconds = round(target.size / rate, 3)
        if deadline is not None and used + target.seconds > deadline:
            target.fail(no_time(target, deadline, rate), "no_time")
        else:
            used += target.seconds


def no_time(target: Target, deadline: float, rate: float | None) -> errors.NoTime:
    """Return the error of a guest that the deadline, in seconds, left no time for."""
    size, limit = units.format_size(target.size), units.format_duration(deadline)
    how_fast = f" at {units.format_size(rate)}/s" if rate else ""
    return errors.NoTime(
        f"guest {target.name!r}: no time to save its {size}{how_fast} within {limit}",
        hint="the guest was not touched; allow more time, or give it a higher priority",
        size_bytes=target.size,
    )
