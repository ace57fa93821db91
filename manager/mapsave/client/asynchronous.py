"""The client of the service for programs of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from mapsave import errors
from mapsave.client import address as addresses
from mapsave.client import calls, events, exchange, http
from mapsave.client.address import BUSY, Address, Unix
from mapsave.client.client import TIMEOUT
from mapsave.client.events import Event
from mapsave.client.exchange import Answer, Ask, Call, Pause, Role
from mapsave.strict_json import Facts

P = ParamSpec("P")
T = TypeVar("T")
_LONGEST = 64 << 20  # bytes of a line: an event has the whole result of an operation
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _method(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Return the method that runs ``call`` and returns its result."""

    @functools.wraps(call)
    async def method(self: AsyncClient, /, *arguments: P.args, **named: P.kwargs) -> T:
        return await self.call(call(*arguments, **named))

    return method


class AsyncClient:
    """Does as ``client.Client`` does, with asyncio. One client serves any number of tasks.

    Where a task that waits for an operation is cancelled, it has the operation cancelled and waits
    until everything is rolled back; cancelled again, it no longer waits.
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

    async def get(self, path: str, /, **query: object) -> Answer:
        """Return what the service answers at ``path``, with all its fields."""
        return await self._ask(exchange.get(path, **query))

    async def post(
        self, path: str, body: Facts | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Post ``body`` and return what the service answers."""
        return await self._ask(exchange.post(path, body, headers))

    async def events(self, operation: str | None = None) -> AsyncIterator[Event]:
        """Yield the events of the service, or those of one operation, by its id, until it ends.

        Raises ServiceUnreachable where the service ends them.
        """
        reader = events.Reader(operation)
        ask = events.ask(operation)
        async with self._sent(ask) as (head, stream):
            if head.status >= 400:
                await self._object(ask, head, stream)
            try:
                while line := await asyncio.wait_for(stream.readline(), self.timeout):
                    if (event := reader.event(line)) is not None:
                        yield event
                    if reader.has_ended:
                        return
            except (OSError, ValueError) as error:  # TimeoutError is an OSError
                raise addresses.failed(self.address, error) from None
        raise events.no_more(self.address)

    async def call(self, call: Call[T]) -> T:
        """Run ``call`` to its end: ask what it asks for, and return its result."""
        try:
            step = next(call)
            while True:
                try:
                    answer = await self._done(step)
                except BaseException as error:
                    step = call.throw(error)
                else:
                    step = call.send(answer)
        except StopIteration as end:
            return cast("T", end.value)

    async def _done(self, step: Ask | Pause) -> Answer:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return {}
        if not step.begins:
            return await self._ask(step)
        task = asyncio.ensure_future(self._ask(step))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with contextlib.suppress(errors.MapsaveError):
                await task
            raise

    async def _ask(self, ask: Ask) -> Answer:
        async with self._sent(ask) as (head, stream):
            return await self._object(ask, head, stream)

    async def _object(self, ask: Ask, head: http.Head, stream: asyncio.StreamReader) -> Answer:
        try:
            async with asyncio.timeout(self.timeout):
                body = await stream.readexactly(head.length)
            return exchange.answered(ask, head.status, body)
        except asyncio.IncompleteReadError:
            raise addresses.failed(self.address, http.cut("within")) from None
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise addresses.failed(self.address, error) from None

    @contextlib.asynccontextmanager
    async def _sent(self, ask: Ask) -> AsyncIterator[tuple[http.Head, asyncio.StreamReader]]:
        """Send a request, and yield the head of its answer with the stream of its body."""
        headers, body = ask.encoded(self.role)
        try:
            async with asyncio.timeout(self.timeout):
                reader, writer = await self._connected()
        except OSError as error:  # TimeoutError is one
            raise addresses.failed(self.address, error) from None
        try:
            try:
                writer.write(http.request(ask.method, ask.path, headers, body))
                async with asyncio.timeout(self.timeout):
                    await writer.drain()
                    head = await _head(reader)
            except OSError as error:
                raise addresses.failed(self.address, error) from None
            yield head, reader
        finally:
            writer.transport.abort()  # nothing that is left is worth waiting for

    async def _connected(self) -> _Streams:
        if not isinstance(self.address, Unix):
            return await asyncio.open_connection(
                *self.address.place, ssl=self.address.context, limit=_LONGEST
            )
        # asyncio takes a full queue of the socket for a connection under way, which it is not.
        sock = self.address.unconnected(0)
        try:
            deadline = time.monotonic() + min(self.timeout, BUSY)
            while not self.address.tries(sock, deadline):  # noqa: ASYNC110 (nothing signals it)
                await asyncio.sleep(0.01)
            return await asyncio.open_unix_connection(sock=sock, limit=_LONGEST)
        except BaseException:
            sock.close()
            raise


async def _head(reader: asyncio.StreamReader) -> http.Head:
    """Read the head of an answer. Raises ConnectionError where that is none."""
    lines, room = [], http.MOST_HEAD
    try:
        while (line := await reader.readline()) not in http.ENDS_HEAD:
            room -= len(line)
            if not line.endswith(b"\n") or room <= 0:
                raise http.cut("before")
            lines.append(line)
    except ValueError:  # a line that is longer than the limit
        raise http.cut("before") from None
    return http.Head(lines)
