"""Which images of a job are kept, and the removal of the others.

Looked at are only the images whose metadata name the job and the guest. Never removed: what is
pinned; the newest good image of the guest; an image that is the guest itself, which was saved to
quit and not brought back since, with no later image of the guest; and what is damaged, not complete
or of the future, which counts for nothing either. Damaged is also what ``verify --data`` or a scrub
has found so: an image whose data is damaged must not cost the guest its good ones.
"""

import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import uuid as uuids
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict, cast

from mapsave import blocking, errors
from mapsave.config import Config
from mapsave.image import image, store
from mapsave.image.metadata import Metadata
from mapsave.image.store import Entry
from mapsave.image.superblock import Superblock
from mapsave.jobs import outcome
from mapsave.jobs.job import Job, Keep
from mapsave.operations import (
    answering,
    discard,
    images,
    pins,
    restored_notes,
    verified_notes,
    whereabouts,
)
from mapsave.operations import in_use as users_of
from mapsave.operations.in_use import User
from mapsave.operations.whereabouts import Note

_log = logging.getLogger(__name__)

_REMOVAL = 600.0  # seconds that the removal of a job's images may take
# The hour that comes twice in autumn is two hours: they differ by their distance from UTC.
_BUCKETS = (
    ("hourly", "%Y-%m-%d %H:00%z"),
    ("daily", "%Y-%m-%d"),
    ("weekly", "%G-W%V"),  # ISO 8601
    ("monthly", "%Y-%m"),
)


@dataclass(frozen=True)
class Decision:
    """Whether an image is kept, and why; an image that is not kept has no reasons."""

    entry: Entry
    kept: bool
    reasons: tuple[str, ...] = ()


class Line(TypedDict):
    """One image: its path, whether it is kept and why, and its ``bytes`` on disk."""

    image: str
    guest: str
    kept: bool
    reasons: list[str]
    bytes: int
    error: errors.ErrorDict | None


class Pruned(TypedDict):
    """What ``mapsave job prune --json`` prints."""

    job: str
    dry_run: bool
    images: list[Line]
    kept: int
    removed: int
    freed_bytes: int
    exit_code: int


def plan(
    entries: Iterable[Entry],
    job: str,
    guest: str,
    keep: Keep,
    zone: datetime.tzinfo,
    *,
    now: datetime.datetime,
    made: Collection[str] = (),
    managed: Note | None = None,
    pinned: Container[uuids.UUID] = frozenset(),
) -> list[Decision]:
    """Decide about the images of ``guest`` that ``job`` saved, newest first; others are left out.

    The last image of each of so many hours, days, ISO weeks and months is kept, as they are in
    ``zone``; periods without an image do not count. ``made`` are paths of images, ``pinned`` uuids
    of images, that are kept whatever else holds. ``managed`` is the guest's last managed save,
    wherever that is now.
    """
    entries = list(entries)
    last = images.last_saved(entries, guest, now, managed)
    reasons: dict[str, list[str]] = {}
    good: list[tuple[datetime.datetime, Entry]] = []
    uncounted: list[Entry] = []
    for entry in entries:
        if entry.metadata.get("job") != job or entry.guest != guest:
            continue
        reasons[entry.path] = []
        when = images.saved_at(entry)
        if entry.path in made:
            reasons[entry.path].append("made by this run")
        if entry.block is not None and entry.block.uuid in pinned:
            reasons[entry.path].append("pinned")
        if why := _why_not_counted(entry, when, now):
            reasons[entry.path].append(why)
            uncounted.append(entry)
        elif when is not None:
            good.append((when, entry))
    good.sort(key=lambda each: (each[0], each[1].name), reverse=True)
    for rank, (_, entry) in enumerate(good, 1):
        if rank == 1:
            reasons[entry.path].append("the newest good image")
        if images.is_guest(entry, last):
            reasons[entry.path].append("the only copy of its guest: not restored since")
        if rank <= keep.last:
            reasons[entry.path].append(f"last {rank} of {keep.last}")
    for name, form in _BUCKETS:
        for bucket, entry in _newest(good, form, zone, getattr(keep, name)):
            reasons[entry.path].append(f"{name} {bucket}")
    decisions = [*(entry for _, entry in good), *uncounted]
    return [Decision(e, bool(reasons[e.path]), tuple(reasons[e.path])) for e in decisions]


def _newest(
    good: list[tuple[datetime.datetime, Entry]], form: str, zone: datetime.tzinfo, count: int
) -> list[tuple[str, Entry]]:
    """Return the last ``count`` periods that have an image, and the newest image of each."""
    found: dict[str, Entry] = {}
    for when, entry in good:
        found.setdefault(when.astimezone(zone).strftime(form), entry)
    return list(found.items())[:count]


def _why_not_counted(
    entry: Entry, when: datetime.datetime | None, now: datetime.datetime
) -> str | None:
    if entry.error is not None:
        return f"damaged, not counted: {entry.error.message}"
    if entry.state is store.EntryState.PARTIAL:
        return "incomplete, not counted"
    if when is None:
        return "its time is unknown"
    # Else it would be the newest until then, and each new one would go in its place.
    return (
        "its time is in the future, so it is not counted: check the clock" if when > now else None
    )


async def prune(
    job: Job,
    config: Config,
    *,
    dry_run: bool = False,
    guests: Iterable[str] | None = None,
    made: Iterable[str] = (),
    in_use: bool = False,
) -> list[Line]:
    """Remove what ``job`` does not keep of its images; return a line for each image looked at.

    ``guests`` are those of the job if not given; ``made`` are paths of images that a run has just
    made, which are kept. With ``dry_run`` nothing is removed. An image that another mapsave works
    on is kept until the next time, one that a guest lives on unless ``in_use``. A job that keeps
    all has no lines. Raises ConfigError, BadDirectory, NotPermitted.
    """
    if job.keep is None:
        return []
    names = job.resolve(config) if guests is None else list(guests)
    await answering.check(config.images, writable=not dry_run)
    work = functools.partial(_prune, in_use=in_use)
    with answering.reported(config.images):
        return await blocking.within(
            _REMOVAL, work, job, job.keep, config, names, list(made), dry_run
        )


def summary(job: Job, lines: list[Line], *, dry_run: bool) -> Pruned:
    """Return what ``mapsave job prune --json`` prints of the lines of ``prune``."""
    removed = [line for line in lines if not line["kept"]]
    return {
        "job": job.name,
        "dry_run": dry_run,
        "images": lines,
        "kept": len(lines) - len(removed),
        "removed": len(removed),
        "freed_bytes": sum(line["bytes"] for line in removed),
        "exit_code": outcome.worst(exit_codes(lines)),
    }


def exit_codes(lines: list[Line]) -> list[int]:
    """Return the exit codes of what could not be removed."""
    return [line["error"]["exit_code"] for line in lines if line["error"]]


def _prune(
    job: Job,
    keep: Keep,
    config: Config,
    guests: list[str],
    made: list[str],
    dry_run: bool,
    *,
    in_use: bool = False,
) -> list[Line]:
    with contextlib.suppress(PermissionError):  # opening it says so
        if not config.images.is_dir():
            return []
    of_guest: dict[str | None, list[Entry]] = {guest: [] for guest in guests}
    unreadable: list[Entry] = []
    with store.directory(config.images) as held:
        for entry in store.each(held, restored_notes.noted(config.state)):
            if entry.state is store.EntryState.UNREADABLE:
                unreadable.append(entry)
            if entry.guest in of_guest:  # of other jobs too: they say when it was saved last
                of_guest[entry.guest].append(_slim(entry))
    if unreadable:
        _log.warning(
            "%d images cannot be read, and are neither counted nor removed: %s",
            len(unreadable),
            unreadable[0].error,
        )
    known = verified_notes.Known(config.state)
    of_guest = {guest: [_as_known(each, known) for each in of_guest[guest]] for guest in guests}
    new = {os.path.realpath(path) for path in made}
    pinned = pins.pinned(config.state)
    users = [] if in_use else users_of.everyone(config.state)
    now = datetime.datetime.now(datetime.UTC)
    zone = job.zone
    lines: list[Line] = []
    for guest in guests:
        managed = whereabouts.last_managed(config.state, guest)

        def planned(
            found: list[Entry], guest: str = guest, managed: Note | None = managed
        ) -> list[Decision]:
            return plan(
                found,
                job.name,
                guest,
                keep,
                zone,
                now=now,
                made=new,
                managed=managed,
                pinned=pinned,
            )

        for decision in _proven(of_guest.pop(guest), planned):
            line: Line = {
                "image": decision.entry.path,
                "guest": guest,
                "kept": decision.kept,
                "reasons": list(decision.reasons),
                "bytes": decision.entry.allocated_bytes,
                "error": None,
            }
            if not decision.kept and (found := _users(decision.entry, users)):
                line |= {"kept": True, "reasons": [f"in use by {users_of.words(found)}"]}
            elif not decision.kept and not dry_run:
                _remove(config, decision.entry, line, in_use=in_use)
            lines.append(line)
    return lines


def _as_known(entry: Entry, known: verified_notes.Known) -> Entry:
    """Return an entry with the error that the image was found with when its data was verified."""
    if entry.error is not None or entry.block is None:
        return entry
    error = verified_notes.failure(known.get(entry.block.uuid, entry.inode))
    return entry if error is None else dataclasses.replace(entry, error=error)


def _users(entry: Entry, users: list[User]) -> list[User]:
    """Return who lives on an image, or on a copy of it: which of them is not in an entry."""
    uuid = str(entry.block.uuid) if entry.block is not None else None
    return [user for user in users if user.uuid == uuid]


def _slim(entry: Entry) -> Entry:
    """Return an entry with what a plan looks at: of tens of thousands the rest is much memory.

    What Python has taken for small pieces it rarely gives back, be they free again.
    """
    known, block = entry.metadata, entry.block
    metadata = {**_same(known.get("job"), known.get("then"), entry.guest)}
    metadata["started"] = known.get("started")
    if block is not None:
        block = Superblock(block.state, sequence=0, stream_offset=0, uuid=block.uuid)
    return dataclasses.replace(
        entry,
        metadata=cast("Metadata", metadata),
        block=block,
        error=entry.error and entry.error.with_traceback(None),
    )


@functools.lru_cache
def _same(job: str | None, then: str | None, guest: str | None) -> Mapping[str, object]:
    return {"job": job, "then": then, "guest": {"name": guest}}


def _proven(
    entries: list[Entry], planned: Callable[[list[Entry]], list[Decision]]
) -> list[Decision]:
    """Plan so that the newest image, on which all others' removal relies, is read and found good.

    Listed as good is any image whose superblock is; those that are newer and damaged do not count.
    """
    decisions = planned(entries)
    if all(each.kept for each in decisions):
        return decisions
    damaged: dict[str, Entry] = {}
    for newest in decisions:
        try:
            with image.opened(newest.entry.path) as opened:
                opened.validate()
            break
        except errors.MapsaveError as error:
            damaged[newest.entry.path] = dataclasses.replace(newest.entry, error=error)
    return planned([damaged.get(each.path, each) for each in entries])


def _remove(config: Config, entry: Entry, line: Line, *, in_use: bool) -> None:
    """Remove an image; note in its line what became of it otherwise."""
    try:
        with image.opened(entry.path) as opened:
            if entry.block is None or opened.block.uuid != entry.block.uuid:
                line |= {"kept": True, "reasons": ["another image has taken its name since"]}
                return
        done = discard.discard(config, entry.path, unrestored=True, in_use=in_use)
        if done["note"] is not None:  # its space is freed when its guest quits
            line |= {"bytes": 0, "reasons": [*line["reasons"], str(done["note"])]}
        else:
            line["bytes"] = int(str(done["freed_bytes"]))
    except errors.ImageNotFound:
        line["reasons"] = ["another process has removed it"]
    except errors.Busy as error:
        line |= {"kept": True, "reasons": [f"in use: {error.message}"]}
    except errors.MapsaveError as error:
        line |= {"kept": True, "error": error.as_dict()}
    except OSError as error:
        failed = errors.of_os_error(
            error,
            f"cannot delete {entry.path!r}: {error.strerror}",
            os.path.dirname(entry.path),
            os.W_OK | os.X_OK,
            otherwise=errors.BadDirectory,
        )
        line |= {"kept": True, "error": failed.as_dict()}
