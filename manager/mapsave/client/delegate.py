"""Have the service do something, and follow it to its end as if it were done here."""

import contextlib
import dataclasses
import os

from mapsave import errors
from mapsave.client import connection
from mapsave.client.connection import Answer, Client
from mapsave.history.states import ENDED
from mapsave.migration import progress
from mapsave.migration.progress import Report
from mapsave.strict_json import Facts

_WAIT = 30.0
_RECONNECT = 60.0


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds: how long the service may ``wait`` with its answer for something new, and how long
    one that does not answer may take to come back."""

    wait: float = _WAIT
    reconnect: float = _RECONNECT


_USUAL = Patience()


def perform(
    client: Client,
    body: Facts,
    report: Report = progress.silent,
    patience: Patience | None = None,
) -> Answer:
    """Begin the operation ``body``, follow it, and return its result.

    Ctrl-C and SIGTERM cancel it; it rolls everything back first, for which we wait as long as a
    command may go on after a signal. Raises what it failed with, as the same operation would
    here; Interrupted, ServiceLost.
    """
    # Chosen here, so that it can be asked for and cancelled even if its answer never came.
    number = os.urandom(6).hex()
    patience = patience or _USUAL
    with client.stop.cancels(client.interrupt, lambda name: _unfinished(number, name)):
        try:
            client.post("/v1/operations", body, {"Mapsave-Operation": number})
            found = _follow(client, number, report, patience)
        except connection.RequestInterrupted:
            client.go_on()
            try:
                found = _cancelled(client, number, report, patience)
            except (errors.ServiceUnreachable, errors.ServiceLost) as error:
                error.data["interrupted"] = True  # so that no one does it instead of the service
                raise
    if found["error"] is not None:
        raise errors.from_dict(found["error"])
    result: Answer = found["result"] or {}
    return result


def follow(client: Client, number: str, report: Report = progress.silent) -> Answer:
    """Wait for the end of an operation that is under way already; return it.

    Ctrl-C ends the waiting, not the operation. Raises UnknownOperation, Interrupted, ServiceLost.
    """
    with client.stop.cancels(client.interrupt):
        try:
            return _follow(client, number, report, _USUAL)
        except connection.RequestInterrupted:
            raise errors.Interrupted(
                f"waiting was interrupted by {client.stop.name}; the operation continues"
            ) from None


def _follow(client: Client, number: str, report: Report, patience: Patience) -> Answer:
    since = -1
    while True:
        path = f"/v1/operations/{number}"
        found = connection.reconnecting(
            client, path, patience.reconnect, wait=patience.wait, since=since
        )
        if found["state"] in ENDED:
            return found
        since = found["revision"]
        if found["progress"]:
            names = ("phase", "done_bytes", "total_bytes", "rate")
            report(progress.Progress(**{name: found["progress"][name] for name in names}))


def _cancelled(client: Client, number: str, report: Report, patience: Patience) -> Answer:
    """Cancel the operation and wait for its end, whatever that is."""
    try:
        with contextlib.suppress(errors.NotCancellable):  # it has ended, or is past the point
            client.post(f"/v1/operations/{number}/cancel")
        return _follow(client, number, report, patience)
    except errors.UnknownOperation:
        raise errors.Interrupted("interrupted before anything was started") from None


def _unfinished(number: str, signal_name: str) -> errors.Interrupted:
    """Return the error for an operation of the service whose end is not known in time."""
    return errors.Interrupted(
        f"interrupted by {signal_name}; the service was asked to cancel operation {number}, "
        "which has not finished yet",
        hint=f"'mapsave wait {number}' waits for it, 'mapsave ps' shows its progress",
        operation=number,
    )
