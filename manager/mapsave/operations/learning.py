"""What saves and restores are planned from: what is known of RAM, image and file system."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from mapsave import blocking, errors, typed
from mapsave.config import Config
from mapsave.image import descriptors, image, store, syscalls
from mapsave.image.validation import Contents
from mapsave.operations import answering, locks
from mapsave.operations.facts import Facts
from mapsave.operations.save_request import Request
from mapsave.plan import correction, layout, pausing, planner, probe
from mapsave.plan.correction import Corrections
from mapsave.plan.cost import Prediction, ReadPrediction
from mapsave.plan.planner import Learned, LearnedImage
from mapsave.plan.probe import Probe

_NAME = "probes"
_PLANNED = ("direct_io", "zero_pages", "channels", "preallocate")
_IN_MEMORY = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}  # linux/magic.h
# Seconds that the best way is predicted to take by typical figures, from which on it is worth a
# second to measure the directory before the first save.
_WORTH_MEASURING = 3.0

_log = logging.getLogger(__name__)


async def learn(
    config: Config, found: Facts, held: store.Directory, request: Request, *, measures: bool = False
) -> Learned | str:
    """Sample the guest's RAM, and look up what was measured of the directory.

    With ``measures`` a directory that was not yet measured is, before a long save. Where nothing is
    known, or nothing is left to choose, returns why: no save fails for that.
    """
    settings = request.settings
    if "auto" not in (getattr(settings, name) for name in _PLANNED):
        return "the settings leave nothing to choose"
    if found.pid is None:
        return "QEMU's process cannot be seen"
    try:
        sampled = await blocking.within(blocking.ANSWER, layout.sample, found.pid, found.blocks)
    except OSError as error:
        return f"the memory of QEMU (pid {found.pid}) cannot be sampled: {error.strerror}"
    learned = await _learned(config.state, sampled, held)
    if measures and not learned.probe.is_measured:
        best = planner.plan(settings, learned, planner.Bounds())
        if best.chosen.seconds >= _WORTH_MEASURING:
            await measured_if_needed(config.state, held)
            learned = await _learned(config.state, sampled, held)
    return learned


async def _learned(state: Path, sampled: layout.Layout, held: store.Directory) -> Learned:
    return await answering.within(held.path, _look_up, state, sampled, held)


def _look_up(state: Path, sampled: layout.Layout, held: store.Directory) -> Learned:
    stats = os.fstatvfs(held.fd)
    figures = cached(state, held.fd) or probe.TYPICAL
    return Learned(
        sampled,
        figures,
        # ramfs reports no blocks; statfs(2): what is undefined is 0.
        free_bytes=held.free_bytes() if stats.f_blocks else None,
        in_memory=syscalls.file_system_type(held.fd) in _IN_MEMORY,
        factors=_corrections(state, held.fd, figures).factors,
    )


def of_image(state: Path, opened: image.Image, contents: Contents) -> LearnedImage:
    """Return what a restore is planned from. Nothing is written: the image may be read-only.

    Blocks. Raises TruncatedImage where it has shrunk since it was validated, UnreadableImage.
    """
    figures = cached(state, opened.fd) or probe.TYPICAL
    with descriptors.reading(opened.path):
        stored = layout.of_image(opened.fd, contents)
        return LearnedImage(stored, figures, _corrections(state, opened.fd, figures).factors)


def cached(state: Path, file: int) -> Probe | None:
    """Return what was measured of the file system of a file; None if that is not so, or old.

    The state directory keeps it by device and file system id.
    """
    try:
        raw = (state / _NAME / _name(file)).read_bytes()
        found = typed.decode(raw, Probe)
    except (OSError, msgspec.DecodeError):
        return None
    is_recent = 0 <= time.time() - found.measured < probe.MAX_AGE
    return found if is_recent and found.is_whole else None


def _corrections(state: Path, file: int, figures: Probe) -> Corrections:
    """Return what saves and restores have shown of these figures for a file system."""
    try:
        raw = (state / _NAME / _name(file, "learned")).read_bytes()
        found = typed.decode(raw, Corrections)
    except (OSError, msgspec.DecodeError):
        found = None
    if found is None or found.measured != figures.measured:
        return Corrections(figures.measured, {})
    return found


def note(
    state: Path, file: int, path: str, found: Prediction | ReadPrediction, took: float
) -> None:
    """Learn from what was predicted so and took so many seconds, on the file system of ``file``.

    What cannot be written is logged: neither a save nor a restore fails for it.
    """
    _note(state, file, path, lambda factors: correction.after(factors, found, took))


def note_pause(state: Path, file: int, path: str, predicted: float, took: float) -> None:
    """Learn from the pause of a checkpoint, as ``note`` does."""
    times = took / max(predicted, 1e-9)
    _note(state, file, path, lambda factors: correction.moved(factors, pausing.KIND, times))


def factors(state: Path, file: int) -> Mapping[str, float]:
    """Return by what predictions are corrected on the file system of ``file``."""
    return _corrections(state, file, cached(state, file) or probe.TYPICAL).factors


def _note(
    state: Path,
    file: int,
    path: str,
    change: Callable[[Mapping[str, float]], dict[str, float] | None],
) -> None:
    name = _name(file, "learned")
    try:
        with locks.held(state, f"what is learned of {path!r}", f"probe:{name}"):
            figures = cached(state, file) or probe.TYPICAL
            known = _corrections(state, file, figures)
            changed = change(known.factors)
            if changed is not None:
                new = Corrections(figures.measured, changed)
                learned = locks.state_directory(state, _NAME) / name
                locks.replace(learned, msgspec.json.encode(new).decode())
    except (errors.MapsaveError, OSError) as error:
        _log.info("cannot record how long it took: %s", error)


async def measured_if_needed(state: Path, held: store.Directory) -> None:
    """Measure a directory that was not; where that is not possible, log why."""
    if cached(state, held.fd) is not None:
        return
    try:
        await measured(state, held)
    except errors.MapsaveError as error:
        _log.info("%s", error)


async def measured(state: Path, held: store.Directory) -> Probe:
    """Measure a directory, keep the figures for later saves, and return them. Takes a second.

    Raises BadDirectory, NotPermitted; Busy where another process measures it.
    """
    with locks.held(state, f"the measurement of {held.path!r}", f"probe:{_name(held.fd)}"):
        work, need = f"measure {held.path!r}", os.W_OK | os.X_OK
        with errors.explained(work, held.path, need, otherwise=errors.BadDirectory):
            found = await blocking.within(blocking.ANSWER, probe.measure, held.fd)
        path = locks.state_directory(state, _NAME) / _name(held.fd)
        with locks.state_errors(f"write {str(path)!r}", path):
            locks.replace(path, msgspec.json.encode(found).decode())
    return found


def _name(file: int, what: str = "measured") -> str:
    return f"{os.fstat(file).st_dev:x}-{os.fstatvfs(file).f_fsid:x}.{what}.json"
