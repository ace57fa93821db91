"""What saves and restores have shown of the predictions: how much longer each kind of way takes.

A factor for each kind, by file system. An outcome moves it part of the way only, and counts as no
more than a few times off: a disk that was busy once spoils nothing, and one that is always slower
is known after some saves.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec

from mapsave.plan.cost import Prediction, ReadPrediction, ReadWay, Way

MOST = 4.0  # times longer, or shorter
_PART = 0.3  # of the way that one outcome moves a factor, as logarithms
# Seconds below which an operation says little: QEMU is asked four times a second how far it is.
_WORTH_LEARNING = 0.5

P = TypeVar("P", Prediction, ReadPrediction)
Factor = Annotated[float, msgspec.Meta(ge=1 / MOST, le=MOST)]


class Corrections(msgspec.Struct, frozen=True):
    """The factors by kind; they are of figures ``measured`` then, and of no others."""

    measured: float
    factors: dict[str, Factor]


def kind(way: Way | ReadWay) -> str:
    """Return what ways are taken together by: their channels make little difference."""
    direct = "direct" if way.direct_io else "cached"
    if isinstance(way, ReadWay):
        return f"{direct}-read"
    return f"{direct}-{way.zero_pages}" + ("-preallocated" if way.preallocate else "")


def corrected(found: P, factors: Mapping[str, float]) -> P:
    """Return a prediction by what earlier operations have shown."""
    seconds = found.seconds * factors.get(kind(found.way), 1.0)
    return dataclasses.replace(found, seconds=seconds)


def after(
    factors: Mapping[str, float], found: Prediction | ReadPrediction, took: float
) -> dict[str, float] | None:
    """Return the factors after what they predicted as ``found`` has taken ``took`` seconds.

    None where it was too short to say anything.
    """
    if max(found.seconds, took) < _WORTH_LEARNING:
        return None
    return moved(factors, kind(found.way), took / max(found.seconds, 1e-9))


def moved(factors: Mapping[str, float], name: str, times: float) -> dict[str, float]:
    """Return the factors after what is corrected by ``name`` has taken that many times longer."""
    old, off = factors.get(name, 1.0), _bounded(times)
    return {**factors, name: _bounded(old * math.exp(_PART * math.log(off)))}


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / MOST), MOST)
