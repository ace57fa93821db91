"""Run a scrub job once: verify the images that are due, the one first that has waited longest.

Due is an image that was not verified within ``every``, or that was found damaged or unreadable
last. Where time is up, or ``limit`` reached, or the run is interrupted, the next one goes on.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import logging
import os
import time
import uuid as uuids
from collections.abc import Callable
from typing import Literal, TypedDict

from mapsave import blocking, errors
from mapsave.config import Config
from mapsave.image import descriptors, store
from mapsave.image.store import EntryState
from mapsave.jobs import outcome
from mapsave.jobs.scrub_job import ScrubJob
from mapsave.migration import progress
from mapsave.migration.progress import Phases, Progress, Report
from mapsave.operations import answering, digesting, image_index, scrubbing, trust, verified_notes
from mapsave.operations.verified_notes import Note, Outcome

_log = logging.getLogger(__name__)

_Result = Literal["verified", "damaged", "unreadable", "without_digests", "skipped", "begun", "due"]
_Ending = Literal["complete", "timeout", "limit"]
_BAD: tuple[_Result, ...] = ("damaged", "unreadable")
Ended = Callable[[str, int], None]


class Line(TypedDict):
    """What came of one image.

    ``read_bytes`` were read by this run, from ``resumed_at`` of the file on where one before had
    come so far. ``verified_bytes`` were as they should be. ``error`` says what is wrong with it, or
    why it was skipped. ``begun``: the next run goes on. ``due``: it was only looked for.
    """

    image: str
    guest: str | None
    outcome: _Result
    read_bytes: int
    verified_bytes: int
    resumed_at: int | None
    duration_s: float
    last: dict[str, object] | None
    error: errors.ErrorDict | None


class Scrubbed(TypedDict):
    """What came of a scrub job: what ``mapsave job run|check --json`` print.

    ``left`` are images that are due still: why is in ``ended``. ``not_due`` were verified more
    recently than ``every``.
    """

    job: str
    kind: Literal["scrub"]
    images: list[Line]
    verified: int
    damaged: int
    unreadable: int
    without_digests: int
    skipped: int
    left: int
    not_due: int
    read_bytes: int
    duration_s: float
    ended: _Ending
    exit_code: int


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """An image of the directory, and what is known of it."""

    path: str
    guest: str | None
    allocated: int
    saved: float
    changed: int
    key: str | None
    note: Note | None

    @property
    def order(self) -> tuple[bool, float, float]:
        """What begins first: a look that was interrupted, then what has waited longest."""
        note = self.note
        is_under_way = note is not None and note.under_way is not None and not note.is_bad
        return not is_under_way, note.time if note is not None else 0.0, self.saved

    def is_due(self, every: float, now: float) -> bool:
        """Return whether to look at it."""
        note = self.note
        if note is None or note.outcome is None or note.is_bad or note.under_way:
            return True
        if note.outcome is Outcome.UNDIGESTED and note.changed != self.changed:
            return True  # it may have got digests
        return not 0 <= now - note.time < every  # a clock that was set back says nothing


class _Limits:
    """When a run ends before all is done."""

    def __init__(self, job: ScrubJob) -> None:
        self._until = None if job.timeout is None else time.monotonic() + job.timeout
        self._limit = job.limit
        self.read = 0  # bytes, by the turns that have ended

    def check(self, read: int = 0) -> None:
        """Raise Over where time is up, or enough was read: ``read`` bytes by this turn."""
        if self._until is not None and time.monotonic() >= self._until:
            raise scrubbing.Over("timeout")
        if self._limit is not None and self.read + read >= self._limit:
            raise scrubbing.Over("limit")


async def run(
    job: ScrubJob,
    config: Config,
    *,
    pauses: Callable[[], bool] = lambda: False,
    ended: Ended = lambda _outcome, _read: None,
    report: Report = progress.silent,
) -> Scrubbed:
    """Verify the images that are due; return the summary. A bad one does not end the run.

    While ``pauses`` says so nothing is read. ``ended`` is called with the outcome of each image,
    and how many bytes were read of it. Raises BadDirectory, NotPermitted; Interrupted in place of a
    cancellation.
    """
    began = time.monotonic()
    found = await answering.within(config.images, _look, job, config)
    due = _due(job, found)
    work = _Work(config, job, pauses, ended, report, due)
    lines: list[Line] = []
    ending: _Ending = "complete"
    try:
        for each in due:
            work.limits.check()
            lines.append(await work.turn(each))
            if lines[-1]["outcome"] == "begun":
                work.limits.check()
    except scrubbing.Over as over:
        ending = over.why
    except asyncio.CancelledError:
        raise _interrupted(job, lines, len(due)) from None
    if ending == "complete":
        present = frozenset(each.key for each in found if each.key)
        await answering.noted(verified_notes.forget_gone, config.state, present)
    summary = _summary(job, lines, due=len(due), found=len(found), ending=ending)
    return {**summary, "duration_s": round(time.monotonic() - began, 6)}


async def check(job: ScrubJob, config: Config) -> Scrubbed:
    """Return what a run would look at. Raises BadDirectory, NotPermitted."""
    found = await answering.within(config.images, _look, job, config)
    lines = [_line(each, "due") for each in _due(job, found)]
    return _summary(job, lines, due=len(lines), found=len(found), ending="complete")


def _due(job: ScrubJob, found: list[_Candidate]) -> list[_Candidate]:
    now = time.time()
    return sorted(
        (each for each in found if each.is_due(job.every, now)), key=lambda each: each.order
    )


def _look(job: ScrubJob, config: Config) -> list[_Candidate]:
    """Return the images that the job is about, without those that are not complete."""
    if not config.images.exists():
        return []
    known = verified_notes.Known(config.state)
    with store.directory(config.images) as held:
        listed = image_index.look(held, config.state, trust.users())
    found = []
    for each in listed.listed:
        read = each.read
        if read.state == EntryState.PARTIAL or not job.is_about(each.name, read.guest):
            continue
        uuid, inode = uuids.UUID(bytes=read.uuid) if read.uuid else None, each.place[1]
        found.append(
            _Candidate(
                path=os.path.join(listed.path, each.name),
                guest=read.guest,
                allocated=each.allocated,
                saved=each.saved,
                changed=-each.place[0],
                key=verified_notes.key(uuid, inode) if uuid is not None else None,
                note=known.get(uuid, inode),
            )
        )
    return found


@dataclasses.dataclass
class _Work:
    """A run under way: the turns of the images that are ``due``, one after the other."""

    config: Config
    job: ScrubJob
    pauses: Callable[[], bool]
    ended: Ended
    report: Report
    due: list[_Candidate]

    def __post_init__(self) -> None:
        self.limits = _Limits(self.job)
        self._pace = scrubbing.Pace(self.job.rate)
        self._total = sum(each.allocated for each in self.due)
        self._done = 0  # bytes of the images whose turns have ended
        self._number = 0
        self._began = time.monotonic()

    async def turn(self, each: _Candidate) -> Line:
        """Look at an image; return what came of it."""
        self._number += 1
        began = time.monotonic()
        turn = scrubbing.Turn(self.config.state, each.path, self._pace, self.limits.check)
        result: _Result
        error: errors.MapsaveError | None = None
        verified = 0
        try:
            try:
                found = await self._looked(turn)
            finally:
                await answering.noted(turn.note)
            result, error, verified = found.outcome.value, found.error, found.verified
        except scrubbing.Over:
            result = "begun"
        except (errors.ImageNotFound, errors.Busy, errors.PartialImage) as why:
            result, error = "skipped", why
        except Exception as why:
            # Not even a bug in one turn must cost the other images theirs.
            error = errors.as_ours(why)
            result = verified_notes.outcome_of(error).value
            if isinstance(error, errors.InvalidImage) and each.key is not None:
                noting = functools.partial(verified_notes.note_failure, changed=each.changed)
                await answering.noted(noting, self.config.state, each.path, each.key, error)
        self.ended(result, turn.read)
        self.limits.read += turn.read
        self._done += each.allocated
        if error is not None:
            _log.warning("scrub: %s: %s", result, error)
        line = _line(each, result)
        line["read_bytes"], line["resumed_at"] = turn.read, turn.resumed_at
        line["verified_bytes"] = verified
        line["duration_s"] = round(time.monotonic() - began, 6)
        line["error"] = error.as_dict() if error is not None else None
        return line

    async def _looked(self, turn: scrubbing.Turn) -> scrubbing.Looked:
        phases = Phases(self._shown)
        phases.enter("scrub")
        work = functools.partial(scrubbing.look, turn)
        with descriptors.reading(turn.path):
            try:
                return await digesting.watched(work, phases, pauses=self.pauses)
            except blocking.NoThread as error:
                raise errors.Busy(f"{turn.path!r} is verified later: {error.strerror}") from None

    def _shown(self, now: Progress) -> None:
        done = min(self._done + now.done_bytes, self._total)
        elapsed = time.monotonic() - self._began
        words = f"image {self._number} of {len(self.due)}"
        self.report(Progress(words, done, self._total, done / elapsed if elapsed else 0.0))


def _line(each: _Candidate, result: _Result) -> Line:
    note = each.note
    shown = note.shown() if note is not None else None
    return {
        "image": each.path,
        "guest": each.guest,
        "outcome": result,
        "read_bytes": 0,
        "verified_bytes": 0,
        "resumed_at": None,
        "duration_s": 0.0,
        "last": {**shown} if shown is not None else None,
        "error": None,
    }


def _summary(
    job: ScrubJob, lines: list[Line], *, due: int, found: int, ending: _Ending
) -> Scrubbed:
    results = collections.Counter(line["outcome"] for line in lines)
    ended = len(lines) - results["begun"] - results["due"]
    codes = [
        line["error"]["exit_code"] for line in lines if line["error"] and line["outcome"] in _BAD
    ]
    return {
        "job": job.name,
        "kind": "scrub",
        "images": lines,
        "verified": results["verified"],
        "damaged": results["damaged"],
        "unreadable": results["unreadable"],
        "without_digests": results["without_digests"],
        "skipped": results["skipped"],
        "left": due - ended,
        "not_due": found - due,
        "read_bytes": sum(line["read_bytes"] for line in lines),
        "duration_s": 0.0,
        "ended": ending,
        "exit_code": outcome.worst(codes),
    }


def _interrupted(job: ScrubJob, lines: list[Line], due: int) -> errors.Interrupted:
    """Return the error for a run that was cancelled: what it has found by then."""
    bad = [line["image"] for line in lines if line["outcome"] in _BAD]
    words = f"job {job.name} was interrupted after {len(lines)} of {due} images"
    if bad:
        words += f"; damaged or unreadable: {', '.join(bad)}"
    return errors.Interrupted(words, hint="the next run goes on from there", bad=bad)
