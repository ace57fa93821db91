"""Have the service do something, and follow it to its end as if it were done here."""

import contextlib
import dataclasses
import time

from mapsave import errors, units
from mapsave.client import exchange
from mapsave.client.exchange import Answer, Ask, Call, Pause, RequestInterrupted
from mapsave.history.states import ENDED
from mapsave.migration import progress
from mapsave.migration.progress import Report
from mapsave.strict_json import Facts

_AGAIN = 0.2  # seconds
_TRIES = 4  # to cancel what the service does not know, or not yet


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds: how long the service may ``wait`` with its answer for something new, and how long
    one that does not answer may take to come back."""

    wait: float = 30.0
    reconnect: float = 60.0


USUAL = Patience()


@dataclasses.dataclass(frozen=True)
class Follow:
    """How an operation is followed: ``report`` is called with how far it is.

    ``operation`` is its id, of 12 hexadecimal digits; one is chosen if it is not given.
    """

    report: Report = progress.silent
    operation: str | None = None
    patience: Patience | None = None


def run(body: Facts, how: Follow) -> Call[Answer]:
    """Begin the operation ``body``, follow it, and return its result.

    Given up, by ``Client.interrupt``, a KeyboardInterrupt, the cancellation of the task, or what
    ``report`` raises, it has the operation cancelled, and waits until everything is rolled back.
    Then the exception is raised again; after ``Client.interrupt`` it returns or raises what became
    of the operation. Raises what it failed with, as the same operation would here; Interrupted,
    ServiceLost, and as ``begin`` does.
    """
    number = how.operation or exchange.new_number()
    how = dataclasses.replace(how, operation=number)
    try:
        yield from begin(body, number)
        found = yield from follow(number, how)
    except RequestInterrupted:
        try:
            found = yield from _cancelled(number, how)
        except (errors.ServiceUnreachable, errors.ServiceLost) as error:
            error.data["interrupted"] = True  # so that no one does it instead of the service
            raise
    except (errors.MapsaveError, GeneratorExit):
        raise
    except BaseException:  # also what ``report`` raises
        with contextlib.suppress(errors.MapsaveError):
            yield from _cancelled(number, Follow(patience=how.patience))
        raise
    if found["error"] is not None:
        raise errors.from_dict(found["error"])
    result: Answer = found["result"] or {}
    return result


def begin(body: Facts, number: str | None = None) -> Call[Answer]:
    """Begin the operation ``body``, and return it without waiting for its end.

    With the id ``number`` it may be sent again without beginning it twice. Raises what the service
    refuses it with, ServiceUnreachable, NotPermitted.
    """
    headers = {"Mapsave-Operation": number or exchange.new_number()}
    return (yield Ask("POST", "/v1/operations", body, headers, begins=True))


def follow(number: str, how: Follow) -> Call[Answer]:
    """Wait for the end of an operation; return it. Raises UnknownOperation, ServiceLost."""
    patience = how.patience or USUAL
    # Where no one looks, or only seldom, its changes are not asked for: each would cost a request.
    since, until = -1, "end" if how.report is progress.silent else "change"
    if isinstance(how.report, progress.Seldom):
        until, wait = "end", min(patience.wait, how.report.every)
        patience = dataclasses.replace(patience, wait=wait)
    while True:
        found = yield from _reconnecting(number, patience, since, until)
        if found["state"] in ENDED:
            return found
        since = found["revision"]
        if found["progress"]:
            names = ("phase", "done_bytes", "total_bytes", "bytes_per_s")
            how.report(progress.Progress(**{name: found["progress"][name] for name in names}))


def cancel(number: str) -> Call[Answer]:
    """Have an operation cancelled; return it as it is then.

    It is rolled back first: ``follow`` waits for that. Raises UnknownOperation, NotCancellable.
    """
    return (yield exchange.post(f"{exchange.operation(number)}/cancel"))


def _reconnecting(number: str, patience: Patience, since: int, until: str) -> Call[Answer]:
    """Return the operation once it is news; wait for a service that has ended to come back.

    It has ``patience.reconnect`` seconds for that. Raises ServiceLost where it does not.
    """
    deadline = time.monotonic() + patience.reconnect
    while True:
        try:
            return (
                yield exchange.get(
                    exchange.operation(number), wait=patience.wait, since=since, until=until
                )
            )
        except errors.ServiceUnreachable as error:
            if time.monotonic() > deadline:
                raise errors.ServiceLost(
                    "the service has exited and did not come back within "
                    f"{units.format_duration(patience.reconnect)}: {error.message}",
                    hint="the next start of the service, or 'mapsave recover', completes the "
                    "operation or rolls it back",
                ) from None
        yield Pause(_AGAIN)


def _cancelled(number: str, how: Follow) -> Call[Answer]:
    """Cancel the operation and wait for its end, whatever that is."""
    if isinstance(how.report, progress.Seldom):  # a rollback is shown as it goes on
        how = dataclasses.replace(how, report=how.report.report)
    for _ in range(_TRIES):
        try:
            with contextlib.suppress(errors.NotCancellable):  # it has ended, or is past the point
                yield from cancel(number)
            return (yield from follow(number, how))
        except errors.UnknownOperation:
            yield Pause(_AGAIN)  # the request to begin it may still be on its way
    raise errors.Interrupted("interrupted before anything was started")
