"""The results of a save and of a restore, undisturbed or recovered.

They are what ``--json`` prints, and what hooks, history and service get. Sizes are in bytes, times
in seconds. ``recovered``: ``mapsave recover`` has completed it; what only the process that died had
seen is empty then: ``phases_s``, ``reasons``, the duration of a restore.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mapsave.migration.run_states import RunState

if TYPE_CHECKING:  # who only reads a result, as the commands do, needs none of these
    from mapsave.image.image import Partial
    from mapsave.image.metadata import Metadata
    from mapsave.image.store import Entry
    from mapsave.image.validation import Contents
    from mapsave.labels.label import Label
    from mapsave.migration.guest_state import Paused
    from mapsave.operations.save_transfer import SaveJob
    from mapsave.operations.written import Written


@dataclasses.dataclass(kw_only=True)
class _Result:
    image: str | None
    guest: str | None
    ram_bytes: int = 0
    data_bytes: int = 0
    duration_s: float = 0.0
    downtime_s: float | None
    phases_s: dict[str, float] = dataclasses.field(default_factory=dict)
    bytes_per_s: int = 0
    strategy: Mapping[str, object] | None = None
    plan: Mapping[str, object] | None = None
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    recovered: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return the result in JSON's types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(kw_only=True)
class SaveResult(_Result):
    """The result of a save: an image is committed.

    ``state`` is the image's, None where it is gone from its place since. ``managed``: libvirt
    restores it when the domain is started. ``strategy``, ``plan``,
    ``label``, ``written``, ``proof`` and ``checkpoint`` (how one was taken) are as in the image's
    metadata, and None where that does not say. ``exclusive_bytes`` are those on the disk that the
    image does not share with the guest's RAM file. ``digests`` of its data are ``taken``,
    ``pending`` (to be taken) or ``none``.
    """

    format: str | None = None
    managed: bool = False
    state: str | None = None
    file_bytes: int = 0
    allocated_bytes: int = 0
    exclusive_bytes: int = 0
    label: Mapping[str, object] | None = None
    then: str | None
    written: Mapping[str, object] | None = None
    proof: Mapping[str, object] | None = None
    checkpoint: Mapping[str, object] | None = None
    digests: str | None = None


@dataclasses.dataclass(kw_only=True)
class RestoreResult(_Result):
    """The result of a restore: the guest is at ``monitor``. ``pid`` None: not in our sight.

    ``plan`` is None where libvirt has read the image itself, and where RAM is mapped from it
    (``instant``); ``reasons`` say why it is not. ``warm`` is what was read into the page cache
    beside that. ``verified_bytes`` of data had the digests that they should; None where none were
    compared. ``shared_file``: RAM is a shared file that mapsave has made.
    """

    run_state: str
    monitor: str | None
    pid: int | None = None
    instant: bool = False
    shared_file: bool = False
    warm: Mapping[str, object] | None = None
    verified_bytes: int | None = None


def saved(
    job: SaveJob, partial: Partial, paused: Paused, label: Label, proven: tuple[Contents, Written]
) -> SaveResult:
    """Return the result of a save that has just committed its image."""
    contents, found = proven
    stats = os.fstat(partial.fd)
    phases = job.phases.seconds()
    seconds = phases.get("write", 0) + phases.get("sync", 0)
    return SaveResult(
        image=job.path,
        guest=job.guest,
        format=job.request.format,
        managed=job.managed is not None,
        state=partial.block.state.word,
        ram_bytes=contents.stream.ram_bytes,
        data_bytes=contents.data_bytes,
        file_bytes=stats.st_size,
        allocated_bytes=stats.st_blocks * 512,
        exclusive_bytes=_exclusive(stats.st_blocks * 512, job.metadata),
        duration_s=round(job.phases.total, 6),
        downtime_s=round(paused.seconds(), 6) if job.facts.runs else 0.0,
        phases_s=phases,
        bytes_per_s=round(contents.data_bytes / seconds) if seconds and not job.shared_ram else 0,
        strategy=job.strategy.as_dict(),
        plan=job.plan_outcome(),
        reasons=job.strategy.reasons,
        label=label.as_dict(),
        then=job.then,
        written=found.as_dict(),
        proof=job.metadata.get("proof"),
        checkpoint=job.metadata.get("checkpoint"),
        digests=partial.block.digests,
        warnings=[*job.warnings(), *found.warnings()],
    )


def recovered_save(entry: Entry) -> SaveResult:
    """Return the result of a save, from what its image says of itself."""
    known = entry.metadata
    started, ended = _time(known.get("started")), _time(known.get("ended"))
    paused = known.get("paused_at")
    seconds = max(ended - started, 0.0) if started and ended else 0.0
    data = int(known.get("data_bytes", 0))
    return SaveResult(
        image=entry.path,
        guest=entry.guest,
        format=entry.format,
        managed=bool(known.get("managed")),
        state=entry.state,
        ram_bytes=_ram(known),
        data_bytes=data,
        file_bytes=entry.file_bytes,
        allocated_bytes=entry.allocated_bytes,
        exclusive_bytes=_exclusive(entry.allocated_bytes, known),
        duration_s=round(seconds, 6),
        downtime_s=round(max(ended - float(paused), 0.0), 6) if paused and ended else 0.0,
        bytes_per_s=round(data / seconds) if seconds and not known.get("checkpoint") else 0,
        strategy=known.get("strategy"),
        plan=known.get("plan"),
        label=known.get("label"),
        then=known.get("then"),
        written=known.get("written"),
        proof=known.get("proof"),
        checkpoint=known.get("checkpoint"),
        digests=entry.block.digests if entry.block is not None else None,
        recovered=True,
    )


def gone(line: Mapping[str, Any]) -> SaveResult:
    """Return the result of a save whose image has been removed after it was committed."""
    return SaveResult(
        image=line["image"],
        guest=line["guest"],
        downtime_s=0.0,
        then="leave",
        warnings=[str(line["outcome"])],
        recovered=True,
    )


def recovered_restore(
    entry: Entry | None, line: Mapping[str, Any] | None, guest: str | None
) -> RestoreResult:
    """Return the result of a restore whose guest was resumed; ``line`` is what recovery did."""
    known: Metadata = entry.metadata if entry is not None else {}
    reported = line or {}
    return RestoreResult(
        image=reported.get("image") or (entry.path if entry is not None else None),
        guest=reported.get("guest") or guest or (entry.guest if entry is not None else None),
        run_state=RunState.RUNNING,
        downtime_s=None,
        ram_bytes=_ram(known),
        data_bytes=int(known.get("data_bytes", 0)),
        monitor=reported.get("monitor"),
        recovered=True,
    )


def _exclusive(allocated: int, known: Metadata) -> int:
    """Return what an image that was just committed does not share; see ``operations.exclusive``."""
    part = known.get("checkpoint")
    if not part or (part.get("afresh") and "extents_after" not in part):
        return allocated
    return max(allocated - part.get("shared_bytes", 0), 0)


def _ram(known: Metadata) -> int:
    return sum(int(block.get("bytes", 0)) for block in known.get("ram_blocks", ()))


def _time(found: str | None) -> float:
    """Return an ISO 8601 time in seconds since the epoch; 0 where there is none."""
    return datetime.datetime.fromisoformat(found).timestamp() if found is not None else 0.0
