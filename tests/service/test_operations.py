"""The operations under way: begun once, ended in any case, and found as they are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.history import history
from mapsave.history.history import History
from mapsave.history.states import State as Stage
from mapsave.service.events import Hub
from mapsave.service.metrics.metrics import Metrics
from mapsave.service.operation import Operation
from mapsave.service.registry import Operations

from tests.kit import wait
from tests.service.observing import State


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[History]:
    async with history.opened(tmp_path / "journal.db") as opened:
        yield opened


@pytest.fixture
def told() -> list[Operation]:
    """The operations whose outcome was told."""
    return []


@pytest.fixture
def operations(kept: History, told: list[Operation], tmp_path: Path) -> Operations:
    return Operations(kept, Hub(), Metrics(State(tmp_path).sources()), told.append)


def _new(**more: Any) -> Operation:
    return Operation("verify", "root", {}, **more)


async def test_a_cancel_behind_the_work_does_not_keep_it_from_ending(
    operations: Operations, kept: History, told: list[Operation]
) -> None:
    new = _new()
    loop = asyncio.get_running_loop()

    async def work(active: Operation) -> dict[str, Any]:
        await operations.starts(active)
        loop.call_soon(operations.cancel, active)  # comes while the end is being written
        return {"good": True}

    await operations.begin(new, work)
    async with asyncio.timeout(wait.LONG):
        await new.wait_end()
        await operations.stop(finish=True)
    assert new.cancel_requested
    record = await kept.get(new.id)
    assert record is not None
    assert (record.state, record.result) == ("done", {"good": True})
    assert told == [new]


async def test_one_id_is_one_operation(operations: Operations) -> None:
    new, over = _new(), asyncio.Event()

    async def work(active: Operation) -> dict[str, Any]:
        await over.wait()
        return {}

    await operations.begin(new, work)
    with pytest.raises(errors.Busy, match=new.id):
        await operations.begin(_new(id=new.id), work)
    assert operations.find_active(new.id) is new
    over.set()
    async with asyncio.timeout(wait.LONG):
        await new.wait_end()


async def test_found_in_the_state_that_is_known_here(operations: Operations) -> None:
    """A save that commits is not in that state in the journal."""
    over = asyncio.Event()

    async def work(active: Operation) -> dict[str, Any]:
        await operations.starts(active)
        active.note_step("commit")
        await over.wait()
        return {}

    ones = [await operations.begin(_new(guest=guest), work) for guest in ("a", "b", "a")]
    async with asyncio.timeout(wait.LONG):
        for each in ones:
            while each.state != Stage.COMMITTING:
                await each.wait_change(each.revision, wait.LONG)

    async def found(**wanted: Any) -> list[str]:
        return [each.id for each in await operations.find(**wanted)]

    ids = [each.id for each in reversed(ones)]
    assert await found(state="committing") == ids
    assert await found(state="committing", limit=2) == ids[:2]
    assert await found(state="committing", guest="a") == [ids[0], ids[2]]
    assert await found(state="committing", before=ids[0]) == ids[1:]
    assert await found(state="running") == []
    assert await found() == ids
    over.set()
    async with asyncio.timeout(wait.LONG):
        for each in ones:
            await each.wait_end()
    assert await found(state="committing") == []
    assert await found(state="done") == ids


async def _until_committing(active: Operation) -> None:
    async with asyncio.timeout(wait.LONG):
        while active.state != Stage.COMMITTING:
            await active.wait_change(active.revision, wait.LONG)


async def test_what_commits_is_not_cancelled_by_a_stop(operations: Operations) -> None:
    new, over = _new(), asyncio.Event()

    async def work(active: Operation) -> dict[str, Any]:
        await operations.starts(active)
        active.note_step("commit")
        await over.wait()
        await operations.note_image(active, "/images/one")
        return {"good": True}

    await operations.begin(new, work)
    await _until_committing(new)
    stopping = asyncio.create_task(operations.stop(finish=False))
    async with asyncio.timeout(wait.LONG):
        await asyncio.sleep(0.01)  # it has begun by then: the loop takes tasks in their order
        over.set()
        await stopping
    assert (new.state, new.image, new.result) == ("done", "/images/one", {"good": True})


async def test_a_cancel_while_the_image_is_named_is_too_late(operations: Operations) -> None:
    new, loop = _new(), asyncio.get_running_loop()

    async def work(active: Operation) -> dict[str, Any]:
        await operations.starts(active)
        assert active.task is not None
        loop.call_soon(active.task.cancel)  # comes while the journal is written
        await operations.note_image(active, "/images/one")
        return {}

    await operations.begin(new, work)
    async with asyncio.timeout(wait.LONG):
        await new.wait_end()
    assert (new.state, new.image) == ("done", "/images/one")


async def test_a_part_that_is_done_although_its_parent_was_cancelled_counts(
    operations: Operations,
) -> None:
    over, parts, counted = asyncio.Event(), {}, []

    async def save(active: Operation) -> dict[str, Any]:
        await operations.starts(active)
        if active.guest == "commits":
            active.note_step("commit")
        await over.wait()
        return {"guest": active.guest}

    async def work(active: Operation) -> dict[str, Any]:
        async def part(guest: str) -> None:
            parts[guest] = _new(guest=guest, parent=active.id)
            counted.append(await operations.perform(parts[guest], save))

        await operations.starts(active)
        async with asyncio.TaskGroup() as group:
            group.create_task(part("commits"))
            group.create_task(part("runs"))
        return {}

    parent = await operations.begin(_new(), work)
    async with asyncio.timeout(wait.LONG):
        while "commits" not in parts:
            await parent.wait_change(parent.revision, 1)
        await _until_committing(parts["commits"])
        operations.cancel(parent)
        await parts["runs"].wait_end()
        over.set()
        await parent.wait_end()
    assert (parts["commits"].state, parts["runs"].state) == ("done", "cancelled")
    assert counted == [{"guest": "commits"}]
    assert parent.state == "cancelled"
