"""The results of a save and of a restore, undisturbed or recovered.

They are what ``--json`` prints, and what hooks, history and service get. Sizes are in bytes, times
in seconds. ``recovered``: ``mapsave recover`` has completed it; what only the process that died had
seen is empty then: ``phases``, ``reasons``, the duration of a restore.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(kw_only=True)
class _Result:
    image: str | None
    guest: str | None
    ram_bytes: int = 0
    data_bytes: int = 0
    duration_s: float = 0.0
    downtime_s: float | None
    phases: dict[str, float] = dataclasses.field(default_factory=dict)
    bytes_per_s: int = 0
    warnings: list[str] = dataclasses.field(default_factory=list)
    recovered: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the result in JSON's types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(kw_only=True)
class SaveResult(_Result):
    """The result of a save: an image is committed.

    ``state`` is the image's, None where it is gone from its place since. ``strategy``, ``label``
    and ``written`` are as in the image's metadata, and None where that does not say.
    """

    format: str | None = None
    state: str | None = None
    file_bytes: int = 0
    allocated_bytes: int = 0
    strategy: Mapping[str, object] | None = None
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    label: Mapping[str, object] | None = None
    then: str | None
    written: Mapping[str, object] | None = None


@dataclasses.dataclass(kw_only=True)
class RestoreResult(_Result):
    """The result of a restore: the guest is at ``monitor``. ``pid`` None: not in our sight."""

    run_state: str
    monitor: str | None
    pid: int | None = None
