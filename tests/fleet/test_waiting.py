"""What waits in a loop ends when it is cancelled, whatever comes at the same moment."""

import asyncio

from mapsave.fleet import waiting


async def test_an_event_is_waited_for_and_not_for_ever() -> None:
    event = asyncio.Event()
    assert not await waiting.is_set_within(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await waiting.is_set_within(event, 60)
    assert await waiting.is_set_within(event, 0)


async def test_a_cancellation_that_comes_with_the_event_is_not_dropped() -> None:
    event = asyncio.Event()

    async def forever() -> None:
        while True:
            await waiting.is_set_within(event, 60)
            event.clear()

    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=1)
    assert done
    assert task.cancelled()
