"""The result of a recovered operation, and the error of one that did not come to its end."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.image.metadata import Metadata
from mapsave.image.store import EntryState
from mapsave.migration.run_states import RunState
from mapsave.operations import recover_restore, recover_save
from mapsave.operations.results import RestoreResult, SaveResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapsave.image.store import Entry

# Outcomes that say themselves what is to be done.
_SPEAKS = (
    recover_save.TAKEN_OVER,
    recover_restore.PAUSED,
    recover_restore.LOADED,
    recover_restore.MAY_RUN,
    recover_restore.MAY_HAVE_RUN,
)


def holds_guest(outcome: str) -> bool:
    """Return whether ``outcome`` of a save is an image that holds its guest, or did until it
    went."""
    return outcome.startswith(recover_save.COMMITTED) and outcome != recover_save.TAKEN_OVER


def is_good(entry: Entry) -> bool:
    """Return whether an image is whole and committed, be it restored already or stale."""
    return entry.state in (EntryState.SAVED, EntryState.RESTORED)


def is_saved(entry: Entry) -> bool:
    """Return whether an image is what a save was to make: good, and not stale from its
    beginning."""
    return is_good(entry) and not entry.metadata.get("continued")


def interrupted(who: str, outcome: str, step: str | None) -> errors.Interrupted:
    """Return the error of an operation that recovery has not brought to its end."""
    error = errors.Interrupted(
        f"{who} exited during the operation; {outcome}",
        hint=None if outcome in _SPEAKS else "start it again",
    )
    if step is not None:
        error.data["step"] = step
    return error


def save(entry: Entry) -> SaveResult:
    """Return the result of a save, from what its image says of itself."""
    known = entry.metadata
    started, ended = _time(known.get("started")), _time(known.get("ended"))
    paused = known.get("paused_at")
    seconds = max(ended - started, 0.0) if started and ended else 0.0
    data = _number(known.get("data_bytes"))
    return SaveResult(
        image=entry.path,
        guest=entry.guest,
        format=entry.format,
        state=entry.state,
        ram_bytes=_ram(known),
        data_bytes=data,
        file_bytes=entry.file_bytes,
        allocated_bytes=entry.allocated_bytes,
        duration_s=round(seconds, 6),
        downtime_s=round(max(ended - float(paused), 0.0), 6) if paused and ended else 0.0,
        bytes_per_s=round(data / seconds) if seconds else 0,
        strategy=known.get("strategy"),
        label=known.get("label"),
        then=known.get("then"),
        written=known.get("written"),
        recovered=True,
    )


def gone(line: Mapping[str, Any]) -> SaveResult:
    """Return the result of a save whose image was been removed after it was committed."""
    return SaveResult(
        image=line["image"],
        guest=line["guest"],
        downtime_s=0.0,
        then="leave",
        warnings=[str(line["outcome"])],
        recovered=True,
    )


def restore(
    entry: Entry | None, line: Mapping[str, Any] | None, guest: str | None
) -> RestoreResult:
    """Return the result of a restore: its guest was resumed.

    ``line`` is what recovery did; None where nothing was left to do.
    """
    known = entry.metadata if entry is not None else Metadata()
    reported = line or {}
    return RestoreResult(
        image=reported.get("image") or (entry.path if entry is not None else None),
        guest=reported.get("guest") or guest or (entry.guest if entry is not None else None),
        run_state=RunState.RUNNING,
        downtime_s=None,
        ram_bytes=_ram(known),
        data_bytes=_number(known.get("data_bytes")),
        monitor=reported.get("monitor"),
        recovered=True,
    )


def _ram(known: Metadata) -> int:
    return sum(_number(block.get("bytes")) for block in known.get("ram_blocks") or ())


def _number(found: object) -> int:
    return int(found) if isinstance(found, int) else 0


def _time(found: object) -> float:
    """Return an ISO 8601 time in seconds since the epoch; 0 where there is none."""
    try:
        return datetime.datetime.fromisoformat(str(found)).timestamp()
    except ValueError:
        return 0.0
