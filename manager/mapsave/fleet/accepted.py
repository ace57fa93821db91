"""What a task may ask of the host that it is for; everything else is refused before it begins.

The database may be in other hands. So a task can ask for a save or a restore of what the host's own
configuration names, and for nothing that reaches further: no path, no program, no definition, and
nothing that replaces an image or trusts one.
"""

import dataclasses
import math
import uuid
from collections.abc import Mapping
from typing import Any

from mapsave import errors, key_types
from mapsave.client import requests
from mapsave.fleet import naming
from mapsave.strict_json import Facts

LONGEST = 86400.0  # seconds that an operation may ask for; it holds its slot that long

_ARGUMENTS = frozenset(("task", "run", "request", "target", "not_after", "limit_s"))
_SAVE = frozenset(
    (
        *("then", "live", "format", "direct_io", "zero_pages", "channels", "preallocate"),
        *("prefer", "max_file_bytes", "policy", "digests", "prove", "keep_unproven", "method"),
        *("checkpoint", "image", "note", "timeout"),
    )
)
_RESTORE = frozenset(
    ("run", "direct_io", "channels", "instant", "verify_data", "warm", "policy", "timeout")
)
# The kinds of operation that a task may be, what their requests consist of, and which options.
_KINDS = {
    "save": (frozenset(("kind", "guest", "save")), _SAVE),
    "restore": (frozenset(("kind", "image", "restore")), _RESTORE),
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A task that is accepted: the body of the request that it is for the local service.

    ``limit`` in seconds is that of the operation, which its request has as well.
    """

    task: uuid.UUID
    body: Facts
    kind: str
    limit: float
    target: str | None

    @property
    def operation(self) -> str:
        """The id of the operation on the host: always the same for the same task."""
        return naming.operation_of(self.task)

    def limited(self, bandwidth: int | None) -> Facts:
        """Return the body with what the slot allows: ``bandwidth`` in bytes per second."""
        if self.kind != "save" or not bandwidth:
            return self.body
        options: Any = self.body["save"]
        return {**self.body, "save": {**options, "bandwidth": bandwidth}}


def task_of(arguments: object) -> uuid.UUID:
    """Return which task the arguments of a job are of. Raises TaskRefused where they say none."""
    found = arguments.get("task") if isinstance(arguments, Mapping) else None
    if isinstance(found, str) and len(found) == len(str(uuid.UUID(int=0))):
        try:
            return uuid.UUID(found)
        except ValueError:
            pass
    raise errors.TaskRefused("the job is not a task of the fleet: it has no id of one")


def read(arguments: object) -> Wanted:
    """Return what a job's arguments ask for. Raises TaskRefused for what is not accepted."""
    task = task_of(arguments)
    assert isinstance(arguments, Mapping)
    if unknown := sorted(str(key)[:40] for key in arguments if key not in _ARGUMENTS):
        raise errors.TaskRefused(
            f"the task has {unknown[0]!r}, which this agent does not know",
            hint="a newer scheduler made it: upgrade mapsave on this host first",
        )
    limit = _limit(arguments.get("limit_s"))
    target = arguments.get("target")
    if target is not None and not (isinstance(target, str) and len(target) <= _TARGET):
        raise errors.TaskRefused("the storage target of the task is not a name")
    body = arguments.get("request")
    if not isinstance(body, Mapping):
        raise errors.TaskRefused("the request of the task is not an object")
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise errors.TaskRefused(
            f"a task may be {' or '.join(_KINDS)}, not {_shown(kind)}",
            hint="anything else is done on the host itself",
        )
    return Wanted(task, _accepted(kind, body, limit), kind, limit, target)


_TARGET = key_types.NAME_BYTES


def _limit(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 1 <= value <= LONGEST:  # type: ignore[arg-type,operator]
        raise errors.TaskRefused("the time limit of the task is not a number of seconds")
    return float(value)  # type: ignore[arg-type]


def _accepted(kind: str, body: Mapping[Any, Any], limit: float) -> Facts:
    """Return the request with its time limit. Raises TaskRefused."""
    fields, options = _KINDS[kind]
    given = body.get(kind)
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise errors.TaskRefused(f"{kind!r} of the task's request is not an object")
    for name in (*(set(body) - fields), *(set(given) - options)):
        raise errors.TaskRefused(
            f"a task may not set {str(name)[:40]!r} of a {kind}",
            hint="who needs it does it on the host itself",
        )
    guest = body.get("guest")
    if isinstance(guest, str) and guest.startswith(key_types.ADDRESSES):
        raise errors.TaskRefused("a task names guests of the host's configuration, no addresses")
    try:
        request = requests.parse({**body, kind: dict(given)})
    except (errors.RequestInvalid, RecursionError, UnicodeError) as error:
        words = error.message if isinstance(error, errors.RequestInvalid) else str(error)
        raise errors.TaskRefused(f"the request of the task is not valid: {words}") from None
    own = getattr(getattr(request, kind), "timeout", None)
    timeout = limit if own is None else min(limit, own)
    return {**body, kind: {**given, "timeout": timeout}}


def _shown(value: object) -> str:
    return repr(value)[:60] if isinstance(value, str) else "nothing that is text"
