"""Have the service do something, and follow it to its end as if it were done here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.cli import remote
from manager.migration import progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from manager.cli.remote import Client
    from manager.migration.progress import Report

_WAIT = 30.0
_RECONNECT = 60.0
_ENDED = ("done", "failed", "cancelled")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds: how long the service may ``wait`` with its answer for something new, and how long
    one that does not answer may take to come back."""

    wait: float = _WAIT
    reconnect: float = _RECONNECT


_USUAL = Patience()


class _Told(BaseException):
    """A signal that means: stop. Not an Exception, as KeyboardInterrupt is none."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.name = number.name


def perform(
    client: Client,
    body: Mapping[str, Any],
    report: Report = progress.silent,
    patience: Patience = _USUAL,
) -> dict[str, Any]:
    """Begin the operation ``body``, follow it, and return its result.

    Ctrl-C and SIGTERM cancel it; it puts everything back first. Raises what it failed with, as the
    same operation would here; Interrupted, ServiceLost.
    """
    # Chosen here, so that it can be asked for and cancelled even if its answer never came.
    number = os.urandom(6).hex()
    with _signals() as stop:
        try:
            stop.arm()
            _begin(client, number, body)
            found = _follow(client, number, report, patience)
            stop.disarm()
        except _Told:
            try:
                found = _cancelled(client, number, report, patience)
            except (errors.ServiceUnreachable, errors.ServiceLost) as error:
                error.data["interrupted"] = True  # so that nobody does it in place of the service
                raise
    if found["error"] is not None:
        raise errors.from_dict(found["error"])
    result: dict[str, Any] = found["result"] or {}
    return result


def _begin(client: Client, number: str, body: Mapping[str, Any]) -> None:
    client.post("/v1/operations", body, {"Mapsave-Operation": number})


def follow(client: Client, number: str, report: Report = progress.silent) -> dict[str, Any]:
    """Wait for the end of an operation that is under way already; return it.

    Ctrl-C ends the waiting, not the operation. Raises UnknownOperation, Interrupted, ServiceLost.
    """
    with _signals() as stop:
        try:
            stop.arm()
            found = _follow(client, number, report, _USUAL)
            stop.disarm()
            return found
        except _Told as told:
            raise errors.Interrupted(
                f"waiting was interrupted by {told.name}; the operation goes on"
            ) from None


def _follow(client: Client, number: str, report: Report, patience: Patience) -> dict[str, Any]:
    since = -1
    while True:
        path = f"/v1/operations/{number}"
        found = remote.reconnecting(
            client, path, patience.reconnect, wait=patience.wait, since=since
        )
        if found["state"] in _ENDED:
            return found
        since = found["revision"]
        if found["progress"]:
            names = ("phase", "done_bytes", "total_bytes", "rate")
            report(progress.Progress(**{name: found["progress"][name] for name in names}))


def _cancelled(client: Client, number: str, report: Report, patience: Patience) -> dict[str, Any]:
    """Cancel the operation and wait for its end, whatever that is."""
    try:
        client.post(f"/v1/operations/{number}/cancel")
        return _follow(client, number, report, patience)
    except errors.NotCancellable:
        return _follow(client, number, report, patience)  # it has ended, or is past the point
    except errors.UnknownOperation:
        raise errors.Interrupted("interrupted before anything was begun") from None


class _Stop:
    """Makes of a signal an exception, but only while it is armed, and of the first one alone.

    One that comes before is kept until then. One that comes behind is let pass: it must not tear
    the undoing apart.
    """

    def __init__(self) -> None:
        self._armed = False
        self._early: _Told | None = None

    def arm(self) -> None:
        """Raise _Told from now on, at once where a signal has come already."""
        self._armed = True
        if self._early is not None:
            self._armed = False
            raise self._early

    def disarm(self) -> None:
        """Let signals pass: what could be stopped is over."""
        self._armed = False

    def received(self, number: int, _: Any) -> None:
        """Take a signal, as a handler of Python's ``signal`` module."""
        told = _Told(signal.Signals(number))
        if self._armed:
            self._armed = False
            raise told
        self._early = self._early or told


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Take the signals that mean "stop"; put their handlers back at the end."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.received) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
