"""The result of a recovered operation: the same as if nothing had come between."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.operations import recover_restore, recover_save

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
    return entry.state in ("saved", "restored")


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


def save(entry: Entry) -> dict[str, Any]:
    """Return the result of a save, from what its image says of itself.

    How long the single phases took went with the service that saw them.
    """
    known = entry.metadata
    started, ended = _time(known.get("started")), _time(known.get("ended"))
    paused = known.get("paused_at")
    seconds = max(ended - started, 0.0) if started and ended else 0.0
    data = _number(known.get("data_bytes"))
    return {
        "image": entry.path,
        "guest": entry.guest,
        "format": entry.format,
        "state": entry.state,
        "ram_bytes": _ram(known),
        "data_bytes": data,
        "file_bytes": entry.file_bytes,
        "allocated_bytes": entry.allocated_bytes,
        "duration_s": round(seconds, 6),
        "downtime_s": round(max(ended - float(str(paused)), 0.0), 6) if paused and ended else 0.0,
        "phases": {},
        "bytes_per_s": round(data / seconds) if seconds else 0,
        "strategy": known.get("strategy"),
        "reasons": [],
        "label": known.get("label"),
        "then": known.get("then"),
        "warnings": [],
        "recovered": True,
    }


def gone(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a save whose image has been removed since it was committed."""
    numbers = ("ram_bytes", "data_bytes", "file_bytes", "allocated_bytes", "bytes_per_s")
    return {
        "image": line["image"],
        "guest": line["guest"],
        **dict.fromkeys(numbers, 0),
        "duration_s": 0.0,
        "downtime_s": 0.0,
        "phases": {},
        "then": "leave",
        "outcome": line["outcome"],
        "warnings": [],
        "recovered": True,
    }


def restore(
    entry: Entry | None, line: Mapping[str, Any] | None, guest: str | None
) -> dict[str, Any]:
    """Return the result of a restore: its guest was let run.

    ``line`` is what recovery did; None where nothing was left to do. How long it took is
    unknown.
    """
    known = entry.metadata if entry is not None else {}
    told = line or {}
    return {
        "image": told.get("image") or (entry.path if entry is not None else None),
        "guest": told.get("guest") or guest or (entry.guest if entry is not None else None),
        "run_state": "running",
        "duration_s": 0.0,
        "downtime_s": None,
        "bytes_per_s": 0,
        "ram_bytes": _ram(known),
        "data_bytes": _number(known.get("data_bytes")),
        "phases": {},
        "monitor": told.get("monitor"),
        "pid": None,
        "warnings": [],
        "recovered": True,
    }


def _ram(known: Mapping[str, Any]) -> int:
    return sum(_number(block.get("bytes")) for block in known.get("ram_blocks") or ())


def _number(found: Any) -> int:
    return int(found) if isinstance(found, int) else 0


def _time(found: Any) -> float:
    """Return an ISO 8601 time in seconds since the epoch; 0 where there is none."""
    try:
        return datetime.datetime.fromisoformat(str(found)).timestamp()
    except ValueError:
        return 0.0
