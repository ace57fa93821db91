"""Guests are asked for several clients together, but nobody gets what was before they came."""

import asyncio
from typing import Any

import pytest
from mapsave.evacuation import guest_list
from mapsave.service.guest_states import GuestStates


async def test_who_comes_while_guests_are_asked_waits_for_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of a restore makes clients ask: the guest must not look as it did before that."""
    asked = [asyncio.Event() for _ in range(3)]
    answers = [asyncio.Event() for _ in range(3)]

    async def ask(_: Any) -> Any:
        number = [each.is_set() for each in asked].index(False)
        asked[number].set()
        await answers[number].wait()
        return number

    monkeypatch.setattr(guest_list, "ask", ask)
    states: Any = GuestStates(lambda: None)  # type: ignore[arg-type, return-value]
    first = asyncio.create_task(states.ask())
    await asked[0].wait()
    second = [asyncio.create_task(states.ask()) for _ in range(3)]
    await asyncio.sleep(0)
    answers[0].set()
    assert await first == 0
    await asked[1].wait()
    third = asyncio.create_task(states.ask())
    await asyncio.sleep(0)
    second.pop().cancel()  # which costs the others nothing
    for answer in answers:
        answer.set()
    assert [await each for each in (*second, third)] == [1, 1, 2]
