"""The client of the service for programs that wait for it; the commands use the same."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Concatenate, ParamSpec, TypeVar, cast

from mapsave.client import address as addresses
from mapsave.client import calls, events, exchange, http
from mapsave.client.address import Address
from mapsave.client.events import Event
from mapsave.client.exchange import Answer, Ask, Call, Pause, RequestInterrupted, Role
from mapsave.strict_json import Facts

TIMEOUT = 90.0  # seconds for one answer; the service lets us wait for at most 60

P = ParamSpec("P")
T = TypeVar("T")


def _method(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """Return the method that runs ``call`` and returns its result."""

    @functools.wraps(call)
    def method(self: Client, /, *arguments: P.args, **named: P.kwargs) -> T:
        return self.call(call(*arguments, **named))

    return method


class Client:
    """Talks to the service; one connection a request, which costs little there.

    Without an ``address`` (or the path of a unix socket) it is the service of this host, at the
    socket of the configuration in force. ``timeout`` is how many seconds the service may let us
    wait for an answer. With ``role`` it may do no more than that role, even where its user may.
    Every method raises what the service refuses the request with, ServiceUnreachable where it does
    not answer, and NotPermitted where it may not be asked.

    No method needs the client to be closed. One client is used by one thread at a time.
    """

    def __init__(
        self,
        address: Address | str | None = None,
        *,
        timeout: float | None = None,
        role: Role | None = None,
    ) -> None:
        """Connect to nothing yet. Raises ConfigError and its like without an ``address``."""
        self.address: Address = addresses.chosen(address)
        self.timeout = TIMEOUT if timeout is None else timeout
        self.role = role
        self._socket: socket.socket | None = None
        self._is_interrupted = False

    save = _method(calls.save)
    restore = _method(calls.restore)
    clone = _method(calls.clone)
    check = _method(calls.check)
    verify = _method(calls.verify)
    discard = _method(calls.discard)
    pin = _method(calls.pin)
    unpin = _method(calls.unpin)
    warm = _method(calls.warm)
    recover = _method(calls.recover)
    save_all = _method(calls.save_all)
    restore_all = _method(calls.restore_all)
    run_job = _method(calls.run_job)
    check_job = _method(calls.check_job)
    prune = _method(calls.prune)
    begin = _method(calls.begin)
    wait = _method(calls.wait)
    cancel = _method(calls.cancel)
    operation = _method(calls.operation)
    operations = _method(calls.operations)
    steps = _method(calls.steps)
    guests = _method(calls.guests)
    guest = _method(calls.guest)
    images = _method(calls.images)
    image = _method(calls.image)
    image_picture = _method(calls.image_picture)
    operation_picture = _method(calls.operation_picture)
    jobs = _method(calls.jobs)
    job = _method(calls.job)
    caller = _method(calls.caller)
    health = _method(calls.health)
    status = _method(calls.status)
    reload = _method(calls.reload)

    def get(self, path: str, /, **query: object) -> Answer:
        """Return what the service answers at ``path``, with all its fields."""
        return self._ask(exchange.get(path, **query))

    def post(
        self, path: str, body: Facts | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Post ``body`` and return what the service answers."""
        return self._ask(exchange.post(path, body, headers))

    def events(self, operation: str | None = None) -> Iterator[Event]:
        """Yield the events of the service, or those of one operation, by its id, until it ends.

        Raises ServiceUnreachable where the service ends them.
        """
        reader = events.Reader(operation)
        ask = events.ask(operation)
        with self._answer(ask) as answer:
            if answer.status >= 400:
                self._object(ask, answer)
            try:
                for line in answer.lines():
                    if (event := reader.event(line)) is not None:
                        yield event
                    if reader.has_ended:
                        return
            except (OSError, ValueError) as error:
                raise self._failed(error) from None
            if self._is_interrupted:  # which looks like the end of the answer
                raise RequestInterrupted
        raise events.no_more(self.address)

    def interrupt(self) -> None:
        """Have the request under way, or else the next one, raise RequestInterrupted.

        For another thread, or a handler of signals. A method that follows an operation has it
        cancelled, and waits until everything is rolled back.
        """
        self._is_interrupted = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                # Of the base class: that of TLS drops what the other thread is reading with.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def call(self, call: Call[T]) -> T:
        """Run ``call`` to its end: ask what it asks for, and return its result."""
        try:
            step = next(call)
            while True:
                try:
                    answer = self._done(step)
                except BaseException as error:
                    if isinstance(error, RequestInterrupted):
                        self._is_interrupted = False  # what the call asks now is asked
                    step = call.throw(error)
                else:
                    step = call.send(answer)
        except StopIteration as end:
            return cast("T", end.value)

    def _done(self, step: Ask | Pause) -> Answer:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return {}
        return self._ask(step)

    def _ask(self, ask: Ask) -> Answer:
        with self._answer(ask) as answer:
            return self._object(ask, answer)

    def _object(self, ask: Ask, answer: http.Answer) -> Answer:
        try:
            return exchange.answered(ask, answer.status, answer.read())
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    @contextlib.contextmanager
    def _answer(self, ask: Ask) -> Iterator[http.Answer]:
        headers, body = ask.encoded(self.role)
        with contextlib.ExitStack() as stack:
            stack.callback(self._note, None)
            try:
                sock = stack.enter_context(self.address.connect(self.timeout, self._note))
                self._note(sock)
                http.send(sock, ask.method, ask.path, headers, body)
                answer = http.Answer(stack.enter_context(sock.makefile("rb")))
            except OSError as error:
                raise self._failed(error) from None
            yield answer

    def _note(self, sock: socket.socket | None) -> None:
        """Have ``interrupt`` shut ``sock`` down. Raises RequestInterrupted if it was called."""
        self._socket = sock
        if sock is not None and self._is_interrupted:  # which may not have seen our socket
            raise RequestInterrupted

    def _failed(self, error: Exception) -> Exception:
        if self._is_interrupted:
            return RequestInterrupted()
        return addresses.failed(self.address, error)
