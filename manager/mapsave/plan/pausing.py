"""What a checkpoint will cost: for how long the guest is paused, what is written, and the rest.

The figures are of QEMU 10.0 on loop devices (docs/checkpoints.md). What earlier checkpoints have
taken corrects them, as with saves (``correction``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mapsave import units

KIND = "checkpoint-pause"  # of factors
# With more extents only what is dirty is looked at in the pause, else where each extent is.
FEW = 2000
_QEMU = 0.010  # seconds for its device states, and to stop and continue the guest
_FLUSH = 0.006  # to write what is dirty, if it is next to nothing
_FLUSH_BYTES = 250 * units.MIB  # a second
_LOOK = 0.008 / (1 << 30)  # of each byte of RAM: is it dirty (cachestat)?
_LOOK_EXTENT = 8e-6  # where it is, twice, and to compare that
_WINDOW = 64 * units.KIB  # of which one with dirty pages is shared in whole
_PAGE = 4096
_SHARE = {"XFS": 2.5e-5, "btrfs": 4e-5}  # seconds of each part
_OUTSIDE = 1e-4  # seconds of each extent, while the guest runs
_CLEAN_SHARE = 0.02  # of what is dirty before: the guest writes it again until it is paused
# Bytes that are written for one that was dirtied, records of extents included, and besides.
_WRITTEN = {"XFS": 1.6, "btrfs": 1.2}
_BESIDE = 2 * units.MIB


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of a guest's shared RAM, in bytes; ``others`` are those of other RAM.

    ``dirty`` None: the kernel does not say.
    """

    system: str
    ram: int
    extents: int
    dirty: int | None
    others: int = 0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds for which the guest is paused, of the work besides, and bytes that are written."""

    pause: float
    outside: float
    written_bytes: int

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.pause + self.outside


def predict(found: Measured, factors: Mapping[str, float], *, is_flushed: bool) -> Prediction:
    """Predict a checkpoint. ``is_flushed``: what is dirty is what will be so in the pause.

    Else it is written before the pause, and little of it is dirty again then.
    """
    dirty = found.dirty if found.dirty is not None else 0
    then = dirty if is_flushed else round(dirty * _CLEAN_SHARE)
    parts = min(-(-then // _PAGE), -(-found.ram // _WINDOW))
    if found.extents <= FEW or found.dirty is None:
        look = found.extents * _LOOK_EXTENT
    else:
        look = found.ram * _LOOK
    share = _SHARE.get(found.system, max(_SHARE.values()))
    pause = _QEMU + _FLUSH + look + then / _FLUSH_BYTES + parts * share
    times = _WRITTEN.get(found.system, max(_WRITTEN.values()))
    return Prediction(
        pause * factors.get(KIND, 1.0),
        found.extents * _OUTSIDE + dirty / _FLUSH_BYTES,
        round(dirty * times) + found.others + _BESIDE,
    )


def is_save_better(found: Prediction, save: float, *, resumes: bool) -> bool:
    """Return whether a save of so many seconds, for which the guest is paused, is better.

    One that is left paused is not better off for a short pause, but for what is done soon.
    """
    return save < (found.pause if resumes else found.seconds)
