"""What people ask of the scheduler: whether they may, and what comes of it."""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from mapsave import errors, keys
from mapsave.fleet import orders, patterns, reports
from mapsave.fleet.orders import Order
from mapsave.fleet.settings import Settings
from mapsave.key_types import Duration, Name, Text, Truth
from mapsave.keys import Keys, help
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.leading import Term

_log = logging.getLogger(__name__)

_MOST = 100  # requests of one look
# Who asked was told after half of it that no scheduler answers, and must not be surprised later.
_STALE = datetime.timedelta(seconds=60)


class RunJob(Keys, frozen=True):
    """Run a job of fleet.yaml."""

    job: Annotated[Name, help("Which.")]
    in_window: Annotated[Truth, help("Whether its saves wait for the job's window.")] = False


class Evacuate(Keys, frozen=True):
    """Save and shut down the guests of a host."""

    host: Annotated[Text, help("Which.")]
    deadline_s: Annotated[Duration | None, help("Seconds after which none is begun.")] = None


class GiveBack(Keys, frozen=True):
    """Restore what was evacuated."""

    host: Annotated[Text, help("Which.")]


class Cancel(Keys, frozen=True):
    """Cancel a run, or one task by the id of its operation."""

    run: Annotated[int | None, help("The number of a run.")] = None
    task: Annotated[Text | None, help("The id of an operation.")] = None


KINDS: dict[str, type[Keys]] = {
    "run": RunJob,
    "evacuate": Evacuate,
    "return": GiveBack,
    "cancel": Cancel,
}


@dataclass(frozen=True)
class Request:
    """A request as it is in the database; ``is_owner`` of one who may ask for everything."""

    id: int
    kind: str
    what: Any
    role: str
    is_owner: bool
    created: datetime.datetime
    now: datetime.datetime


async def answer_all(term: Term, settings: Settings) -> int:
    """Answer the requests that have no answer yet, oldest first; return how many.

    Each in a transaction of its own: what was done for one is there exactly if its answer is.
    Raises NotLeading and psycopg.Error.
    """
    async with term.transaction() as connection:
        found = await _open_requests(connection)
    for request in found:
        async with term.transaction() as connection:
            try:
                async with connection.transaction():
                    answer = await _answer(connection, request, settings)
            except errors.MapsaveError as error:
                _log.info("request %s of %s: refused: %s", request.id, request.role, error)
                answer = {"error": dict(error.as_dict())}
            else:
                _log.info("request %s of %s: %s", request.id, request.role, answer)
            await connection.execute(
                """UPDATE requests SET answered = clock_timestamp(), answer = %s
                WHERE id = %s AND answered IS NULL""",
                [_json(answer), request.id],
            )
    return len(found)


async def _open_requests(connection: Connection) -> list[Request]:
    # The database's owner, and the scheduler's own role, need no leave.
    cursor = await connection.execute(
        """SELECT id, kind, what, requested_by AS role, created, clock_timestamp() AS now,
            requested_by IN (session_user, (SELECT pg_get_userbyid(datdba) FROM pg_database
                WHERE datname = current_database())) AS is_owner
        FROM requests WHERE answered IS NULL ORDER BY id LIMIT %s""",
        [_MOST],
    )
    return [Request(**row) async for row in cursor]


def _json(value: Facts) -> Any:
    from psycopg.types.json import Jsonb

    return Jsonb(value, dumps=lambda found: msgspec.json.encode(found).decode())


async def _answer(connection: Connection, request: Request, settings: Settings) -> Facts:
    """Do what is asked for; return the answer. Raises MapsaveError where it is refused."""
    if request.now - request.created > _STALE:
        raise errors.NoScheduler("no scheduler was there to answer the request in time")
    what = _parsed(request)
    order = Order(request.now, request.role)
    if isinstance(what, RunJob):
        _allow(request, "run", what.job, settings.rights(request.role).run)
        if (job := settings.jobs.get(what.job)) is None:
            raise errors.UnknownJob(
                f"fleet.yaml has no job {what.job!r}",
                hint=keys.did_you_mean(what.job, settings.jobs) or None,
            )
        made = await orders.run_job(connection, what.job, job, order, in_window=what.in_window)
    elif isinstance(what, Evacuate):
        _allow(request, "evacuate", what.host, settings.rights(request.role).evacuate)
        made = await orders.evacuate(connection, what.host, what.deadline_s, order)
    elif isinstance(what, GiveBack):
        _allow(request, "return", what.host, settings.rights(request.role).return_to)
        made = await orders.give_back(connection, what.host, order)
    else:
        assert isinstance(what, Cancel)
        return await _cancel(connection, request, what, settings)
    return made.as_dict()


def _parsed(request: Request) -> Keys:
    """Return what a request asks for. Raises RequestInvalid."""
    if (kind := KINDS.get(request.kind)) is None:
        raise errors.RequestInvalid(
            f"the scheduler knows no request {request.kind[:50]!r}",
            hint="it may be of an older version: upgrade it first",
        )
    try:
        return keys.read(request.what, kind)
    except keys.Mistakes as error:
        raise errors.RequestInvalid(f"the request is not valid: {error}") from None


def _allow(request: Request, verb: str, name: str, allowed: tuple[str, ...]) -> None:
    """Raise FleetForbidden unless who asks may do this with the job or host of that name."""
    if request.is_owner or patterns.first(allowed, name) is not None:
        return
    raise errors.FleetForbidden(
        f"fleet.yaml does not allow {request.role!r} to {verb} {name!r}",
        hint=f"who may is in 'may:' there: 'may: {{{request.role}: {{{verb}: [{name}]}}}}'",
        role=request.role,
    )


async def _cancel(
    connection: Connection, request: Request, what: Cancel, settings: Settings
) -> Facts:
    """Cancel a run or a task: what has not begun at once, the rest on its host."""
    if (what.run is None) == (what.task is None):
        raise errors.RequestInvalid("needs either 'run' or 'task'")
    cursor = await connection.execute(
        """SELECT t.job_id, t.run, r.requested_by FROM tasks t JOIN runs r ON r.id = t.run
        WHERE CASE WHEN %(run)s::bigint IS NULL THEN t.operation = %(task)s ELSE t.run = %(run)s END
        UNION ALL SELECT NULL, id, requested_by FROM runs WHERE id = %(run)s""",
        {"run": what.run, "task": what.task},
    )
    rows = await cursor.fetchall()
    if not rows:
        raise reports.unknown(what.run or str(what.task))
    number, owner = rows[0]["run"], rows[0]["requested_by"]
    if not (request.is_owner or owner == request.role or settings.rights(request.role).cancel):
        raise errors.FleetForbidden(
            f"the run {number} is of {owner!r}, and fleet.yaml does not allow {request.role!r} to "
            "cancel what is another's",
            hint=f"'may: {{{request.role}: {{cancel: true}}}}' there allows it",
            role=request.role,
        )
    why = f"cancelled by {request.role}"
    jobs = [row["job_id"] for row in rows if row["job_id"] is not None]
    done = await cancel_jobs(connection, jobs, why)
    if what.task is None:
        await connection.execute("SELECT stop_run(%s, %s)", [number, why])
    return {"run": number, **done}


async def cancel_jobs(connection: Connection, jobs: list[int], why: str) -> Facts:
    """Cancel tasks that have not begun, and ask the hosts of the others to; return how many."""
    # Those under way first: their report may be about to cancel the rest of the run.
    asked = await _ask_to_abort(connection, jobs)
    cursor = await connection.execute(
        """WITH stopped AS (
            UPDATE procrastinate_jobs SET status = 'cancelled'
            WHERE id = ANY(%(jobs)s) AND status = 'todo' RETURNING id)
        UPDATE tasks SET ended = clock_timestamp(),
            outcome = jsonb_build_object('message', %(why)s::text)
        FROM stopped WHERE job_id = stopped.id""",
        {"jobs": jobs, "why": why},
    )
    asked += await _ask_to_abort(connection, jobs)  # what was fetched in between
    return {"cancelled": cursor.rowcount, "asked": asked}


async def _ask_to_abort(connection: Connection, jobs: list[int]) -> int:
    cursor = await connection.execute(
        """UPDATE procrastinate_jobs SET abort_requested = true
        WHERE id = ANY(%s) AND status = 'doing' AND NOT abort_requested""",
        [jobs],
    )
    return cursor.rowcount
