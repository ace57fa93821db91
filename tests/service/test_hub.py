"""Who listens to events gets each once and in order; who does not read costs nothing."""

import asyncio
import re
from contextlib import ExitStack

import pytest
from mapsave.service.events import Hub, Listener

from tests.kit import wait

_NUMBER = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_MANY = 500


async def _hear(listener: Listener, heard: list[int], until: int) -> None:
    while not heard or heard[-1] < until:
        event = await listener.next(wait.LONG)
        assert event is not None
        heard.extend(map(int, _NUMBER.findall(event)))


async def test_many_get_each_event_once() -> None:
    hub, heard = Hub(), [[0] for _ in range(_MANY)]
    with ExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for each in heard:
                listener = stack.enter_context(hub.listening())
                group.create_task(_hear(listener, each, 60))
            for number in range(60):
                hub.publish("operation", {"id": number})
                await asyncio.sleep(0.002 * (number % 4))
    assert heard == [list(range(61))] * _MANY


async def test_who_does_not_read_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are at their last event still, as a client that reads nothing leaves them."""
    hub = Hub()
    called: list[object] = []
    with ExitStack() as stack:
        listeners = [stack.enter_context(hub.listening()) for _ in range(_MANY)]
        with monkeypatch.context() as patched:
            loop = asyncio.get_running_loop()
            patched.setattr(loop, "call_later", lambda *words: called.append(words))
            for number in range(200):
                hub.publish("operation", {"id": number})
        assert called == []
        first = await listeners[0].next(1)
        assert first is not None
        assert _NUMBER.findall(first)[0] == b"1"


async def test_who_lags_behind_is_disconnected() -> None:
    hub = Hub()
    with hub.listening() as listener:
        for number in range(257):
            hub.publish("operation", {"id": number})
        assert await listener.next(1) is None


async def test_one_operation_alone() -> None:
    hub = Hub()
    with hub.listening("a") as listener:
        for number in range(300):
            hub.publish("operation", {"id": "b", "number": number}, "b")
        hub.publish("operation", {"id": "a"}, "a")
        event = await listener.next(1)
        assert event is not None
        assert _NUMBER.findall(event) == [b"301"]
        assert await listener.next(0.01) == b": nothing new\n\n"


async def test_the_end_wakes_those_who_wait() -> None:
    hub = Hub()
    with hub.listening() as listener:
        waiting = asyncio.create_task(listener.next(wait.LONG))
        await asyncio.sleep(0)
        hub.close()
        assert await waiting is None
