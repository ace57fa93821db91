"""Whether a guest can be checkpointed, and what that is predicted to cost; nothing is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from mapsave import errors, units
from mapsave.image import extents, reflink, syscalls
from mapsave.operations import answering, learning, shared_ram
from mapsave.plan import pausing, planner

if TYPE_CHECKING:
    from pathlib import Path

    from mapsave.config import Config
    from mapsave.image import store
    from mapsave.operations.check import Preflight
    from mapsave.operations.facts import Facts
    from mapsave.operations.shared_ram import SharedRam
    from mapsave.plan.pausing import Measured, Prediction


class Forecast(TypedDict):
    """What ``check`` and ``plan`` say of a checkpoint of a guest; bytes and seconds.

    ``extents`` are of its RAM files; ``outside_s`` is what it takes beside the pause. Where it is
    not possible, ``error`` says why not and what to change.
    """

    is_possible: bool
    error: errors.ErrorDict | None
    pause_s: float | None
    outside_s: float | None
    written_bytes: int | None
    dirty_bytes: int | None
    extents: int | None


def measured(shared: SharedRam, held: store.Directory) -> Measured:
    """Look at the RAM files, which takes a moment for each GiB. Raises OSError."""
    count = dirty = 0
    known = True
    for part in shared.parts:
        with shared_ram.opened(part) as fd:
            count += extents.count(fd, part.offset, part.offset + part.length)
            found = syscalls.dirty_bytes(fd, part.offset, part.length)
            known = known and found is not None
            dirty += found or 0
    system = reflink.file_system(held.fd) or ""
    return pausing.Measured(system, shared.bytes, count, dirty if known else None, shared.written)


def _predict(shared: SharedRam, held: store.Directory, state: Path) -> tuple[Measured, Prediction]:
    found = measured(shared, held)
    factors = learning.factors(state, held.fd)
    return found, pausing.predict(found, factors, is_flushed=False)


def forecast(facts: Facts, held: store.Directory, state: Path) -> Forecast:
    """Return what a checkpoint into the directory would cost. Blocks."""
    try:
        found, predicted = _predict(shared_ram.find(facts, held), held, state)
    except errors.Refused as error:
        return _impossible(error)
    except OSError as error:
        return _impossible(
            errors.NoCheckpoint(f"the guest's RAM files cannot be looked at: {error.strerror}")
        )
    return {
        "is_possible": True,
        "error": None,
        "pause_s": round(predicted.pause, 6),
        "outside_s": round(predicted.outside, 6),
        "written_bytes": predicted.written_bytes,
        "dirty_bytes": found.dirty,
        "extents": found.extents,
    }


def _impossible(error: errors.MapsaveError) -> Forecast:
    return {
        "is_possible": False,
        "error": error.as_dict(),
        "pause_s": None,
        "outside_s": None,
        "written_bytes": None,
        "dirty_bytes": None,
        "extents": None,
    }


async def weigh(config: Config, preflight: Preflight) -> None:
    """With ``method: auto`` have the guest saved where that is predicted to be better for it."""
    shared, held, request = preflight.shared_ram, preflight.directory, preflight.request
    if shared is None or request.settings.method != "auto":
        return
    await preflight.learn(config, measures=False)
    learned = preflight.learned
    if not isinstance(learned, planner.Learned):
        return
    try:
        _, found = await answering.within(held.path, _predict, shared, held, config.state)
    except OSError:
        return
    takes_direct = preflight.direct_io_refusal is None
    bounds = planner.Bounds(takes_direct=takes_direct, bandwidth=request.bandwidth)
    seconds = planner.plan(request.settings, learned, bounds).chosen.seconds
    resumes = request.then_for(runs=preflight.facts.runs) == "resume"
    if not pausing.is_save_better(found, seconds, resumes=resumes):
        return
    text = units.format_duration
    preflight.shared_ram = None
    preflight.no_checkpoint = (
        f"RAM is written, which is predicted to take {text(seconds)}: a checkpoint would pause the "
        f"guest for {text(found.pause)} and take {text(found.seconds)}"
    )
