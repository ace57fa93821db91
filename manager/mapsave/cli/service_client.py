"""The service's client as commands use it: a signal stops what they wait for."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from mapsave import errors
from mapsave.cli import interruption
from mapsave.client import delegate, exchange
from mapsave.client.address import Address, Unix, is_absent
from mapsave.client.client import TIMEOUT, Client
from mapsave.client.delegate import Follow
from mapsave.client.exchange import Answer, Call, RequestInterrupted
from mapsave.migration.progress import Report, silent
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.config import Config

T = TypeVar("T")


class ServiceClient(Client):
    """A client whose work ``stop`` ends, which has the name of the signal once one came."""

    def __init__(
        self, address: Address | str, stop: interruption.Stop, timeout: float | None = None
    ) -> None:
        super().__init__(address, timeout=timeout)
        self.stop = stop

    def perform(self, call: Callable[[str], Call[T]]) -> T:
        """Run ``call``, which is given an id for its operation, and return its result.

        Ctrl-C and SIGTERM cancel the operation; it rolls everything back first, for which we wait
        as long as a command may go on after a signal. Raises as ``delegate.run`` does.
        """
        number = exchange.new_number()
        with self.stop.cancels(self.interrupt, functools.partial(_unfinished, number)):
            return self.call(call(number))

    def start(self, body: Facts) -> Answer:
        """Begin the operation ``body``, and return it without waiting for its end.

        Raises Interrupted, and what the service refuses it with.
        """
        number = exchange.new_number()
        with self.stop.cancels(self.interrupt):
            try:
                return self.call(delegate.begin(body, number))
            except RequestInterrupted:
                raise errors.Interrupted(
                    f"interrupted by {self.stop.name}; operation {number} may have begun",
                    hint=f"'mapsave wait {number}' waits for it, 'mapsave cancel {number}' "
                    "cancels it",
                    operation=number,
                ) from None

    def follow(self, number: str, report: Report = silent) -> Answer:
        """Wait for the end of an operation that is under way already; return it.

        Ctrl-C ends the waiting, not the operation. Raises UnknownOperation, Interrupted,
        ServiceLost.
        """
        with self.stop.cancels(self.interrupt):
            try:
                return self.call(delegate.follow(number, Follow(report)))
            except RequestInterrupted:
                raise errors.Interrupted(
                    f"waiting was interrupted by {self.stop.name}; the operation continues"
                ) from None

    @contextlib.contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """End what is done in here at Ctrl-C, SIGTERM or SIGHUP: nothing is left to undo."""
        with self.stop.cancels(self.interrupt), contextlib.suppress(RequestInterrupted):
            yield


def found(
    config: Config, stop: interruption.Stop, timeout: float | None = None
) -> ServiceClient | None:
    """Return the client of the service that works with this configuration; None without one.

    A service that has another state directory is not about the same guests. ``timeout`` is in
    seconds, for one answer. Raises NotPermitted, ServiceUnreachable.
    """
    path = str(config.socket)
    if not listens(path, timeout):
        return None
    client = ServiceClient(path, stop, timeout)
    state = client.get("/v1/health").get("state")
    # Where it is, a file that we may not read says; it is the one that the service has read.
    return client if config.is_unread or same(state, config.state) else None


def needed(config: Config, stop: interruption.Stop) -> ServiceClient:
    """Return the client of the service. Raises ServiceUnreachable where none runs."""
    path = str(config.socket)
    if not _accepts(path):
        raise errors.ServiceUnreachable(
            f"no service listens at {path!r}",
            hint="start it: systemctl start mapsaved, or 'mapsave serve'",
        )
    return ServiceClient(path, stop)


def listens(path: str, timeout: float | None = None) -> bool:
    """Return whether the service listens on the socket; busy, or refusing us, still counts."""
    return os.path.exists(path) and _accepts(path, timeout)


def _accepts(path: str, timeout: float | None = None) -> bool:
    try:
        Unix(path).connect(timeout or TIMEOUT).close()
    except OSError as error:
        return not is_absent(error)  # what the request says of any other is better
    return True


def same(one: object, other: object) -> bool:
    """Return whether two paths lead to the same place."""
    return os.path.realpath(str(one)) == os.path.realpath(str(other))


def _unfinished(number: str, signal_name: str) -> errors.Interrupted:
    """Return the error for an operation of the service whose end is not known in time."""
    return errors.Interrupted(
        f"interrupted by {signal_name}; the service was asked to cancel operation {number}, "
        "which has not finished yet",
        hint=f"'mapsave wait {number}' waits for it, 'mapsave ps' shows its progress",
        operation=number,
    )
