"""The service's client: what the command line asks of a service that runs on this host."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from mapsave import errors, unix_socket
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from mapsave.config import Config

_TIMEOUT = 90.0  # seconds for one answer; the service lets us wait for at most 60
_RECONNECT = 60.0  # seconds that a service may take to come back while we wait for an operation
_BUSY = 10.0  # seconds that a service may take to accept a connection
_SOCKET = "mapsaved"


Answer = dict[str, Any]  # what the service has answered


class Stop(Protocol):
    """How a signal, whose ``name`` it has once one came, stops the command that asks."""

    name: str | None

    def cancels(
        self,
        cancel: Callable[[], object],
        report: Callable[[str], errors.Interrupted] | None = None,
    ) -> contextlib.AbstractContextManager[None]:
        """Have a signal call ``cancel``; ``report`` makes the error for work that goes on."""


class RequestInterrupted(Exception):
    """A request was given up by ``Client.interrupt``; the service may have got it, or not."""


class Client:
    """Talks to the service at a unix socket; one connection a request, which costs little there.

    ``timeout`` is how many seconds the service may let us wait for an answer.
    """

    def __init__(self, path: str, stop: Stop, timeout: float | None = None) -> None:
        self.path = path
        self.stop = stop
        self.timeout = _TIMEOUT if timeout is None else timeout
        self._socket: socket.socket | None = None
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Have the request under way, and every later one, raise RequestInterrupted.

        For another thread than the one that asks.
        """
        self._is_interrupted = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def go_on(self) -> None:
        """Take requests again after ``interrupt``."""
        self._is_interrupted = False

    def get(self, path: str, **query: object) -> Answer:
        """Return what the service answers. Raises its errors, ServiceUnreachable, NotPermitted."""
        given = {name: value for name, value in query.items() if value is not None}
        if given:
            import urllib.parse

            path = f"{path}?{urllib.parse.urlencode(given)}"
        return self._ask("GET", path)

    def post(
        self,
        path: str,
        body: Facts | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Post ``body`` and return what the service answers. Raises as ``get`` does."""
        return self._ask("POST", path, body, headers)

    def lines(self, path: str) -> Iterator[bytes]:
        """Yield the lines of an answer that goes on. Raises as ``get`` does."""
        with self._answer("GET", path, None, None) as answer:
            yield from answer

    def _ask(
        self,
        method: str,
        path: str,
        body: Facts | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        import json

        with self._answer(method, path, body, headers) as answer:
            try:
                found = json.loads(answer.read())
            except (OSError, ValueError) as error:
                raise self._unreachable(error) from None
        if answer.status >= 400:
            raise errors.from_dict(found.get("error", {}))
        assert isinstance(found, dict)
        return found

    @contextlib.contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: Facts | None,
        headers: Mapping[str, str] | None,
    ) -> Iterator[HTTPResponse]:
        import http.client
        import json

        connection = http.client.HTTPConnection(_SOCKET, timeout=self.timeout)
        text = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            try:
                connection.sock = self._socket = connect(self.path, self.timeout)
                if self._is_interrupted:  # which may not have seen our socket
                    raise RequestInterrupted
                connection.request(method, path, text, {**kind, **(headers or {})})
                answer = connection.getresponse()
            except PermissionError as error:
                raise errors.NotPermitted(
                    f"cannot connect to the service at {self.path!r}: {error.strerror}",
                    hint="members of its group may connect; --local works without the service",
                ) from None
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from None
            yield answer
        finally:
            self._socket = None
            connection.close()

    def _unreachable(self, error: Exception) -> errors.ServiceUnreachable:
        if self._is_interrupted:
            raise RequestInterrupted from None
        return errors.ServiceUnreachable(
            f"the service at {self.path!r} does not answer: {error or type(error).__name__}",
            hint="see its log; --local works without the service",
        )


def connect(path: str, timeout: float | None = None) -> socket.socket:
    """Return a connection to the socket at ``path``. Raises OSError."""
    timeout = _TIMEOUT if timeout is None else timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        with unix_socket.to_connect(path) as address:
            _connect(sock, address, min(timeout, _BUSY))
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, address: str, patience: float) -> None:
    """Connect; wait while so many do that the queue is full, which is told as EAGAIN (unix(7))."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def service(config: Config, stop: Stop, timeout: float | None = None) -> Client | None:
    """Return the client of the service that works with this configuration; None without one.

    A service that has another state directory is not about the same guests. ``timeout`` is in
    seconds, for one answer. Raises NotPermitted, ServiceUnreachable.
    """
    path = str(config.socket)
    if not listens(path, timeout):
        return None
    client = Client(path, stop, timeout)
    health = client.get("/v1/health")
    return client if same(health.get("state"), config.state) else None


def listens(path: str, timeout: float | None = None) -> bool:
    """Return whether the service listens on the socket; busy, or refusing us, still counts."""
    if not os.path.exists(path):
        return False
    try:
        connect(path, timeout).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return False  # one that was killed leaves its socket behind
    except OSError:
        pass  # what the request says of it is better
    return True


def needed(config: Config, stop: Stop) -> Client:
    """Return the client of the service. Raises ServiceUnreachable where none runs."""
    path = str(config.socket)
    try:
        connect(path).close()
    except (ConnectionRefusedError, FileNotFoundError):
        raise errors.ServiceUnreachable(
            f"no service listens at {path!r}",
            hint="start it: systemctl start mapsaved, or 'mapsave serve'",
        ) from None
    except OSError:
        pass  # what the request says of it is better
    return Client(path, stop)


def same(one: object, other: object) -> bool:
    """Return whether two paths lead to the same place."""
    return os.path.realpath(str(one)) == os.path.realpath(str(other))


def reconnecting(
    client: Client, path: str, patience: float = _RECONNECT, **query: object
) -> Answer:
    """Return what ``client.get`` does; wait for a service that ended in the meantime to come back.

    It has ``patience`` seconds for that. Raises ServiceLost where it does not.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return client.get(path, **query)
        except errors.ServiceUnreachable as error:
            if time.monotonic() > deadline:
                raise errors.ServiceLost(
                    f"the service has exited and did not come back within {patience:g} s: "
                    f"{error.message}",
                    hint="the next start of the service, or 'mapsave recover', completes the "
                    "operation or rolls it back",
                ) from None
        time.sleep(0.2)


def quoted(text: str) -> str:
    """Return ``text`` as one part of a path."""
    import urllib.parse

    return urllib.parse.quote(text, safe="")
