"""Budgets of storage targets and hosts, kept by the database: real connections, all at once."""

import asyncio
import uuid
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from mapsave.database_settings import Database
from mapsave.fleet.database import Connection

from tests.fleet.agents import agent, fetch, report, take
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet, Task
from tests.kit.wait import LONG

_HOSTS = ("rack1-a", "rack1-b", "rack1-c")


async def test_a_task_is_taken_once_and_reported_once(fleet: Fleet) -> None:
    settings = await fleet.add_host("rack1-a")
    async with agent(settings) as host, fleet.owner() as owner:
        await kit.add_target(owner, "nas1", 2, 1001)
        task = await kit.add_task(owner, Task("rack1-a", target="nas1"))
        assert await fetch(host, "rack1-a") == task
        assert await fetch(host, "rack1-a") is None
        (slot,) = await kit.all_rows(host, "SELECT * FROM take_slot(%s)", task)
        assert slot == {"state": "taken", "slot": 1, "bandwidth": 500, "why": None}
        assert await take(host, task) == "taken"
        assert await kit.one(owner, "SELECT count(*) FROM slots") == 1
        assert await report(host, task) is True
        assert await report(host, task, "failed") is False
        assert await kit.status(owner, task) == "succeeded"
        assert await take(host, task) == "settled"
        assert await kit.one(owner, "SELECT count(*) FROM slots") == 0
        events = await kit.all_rows(owner, "SELECT type FROM procrastinate_events ORDER BY id")
        assert [each["type"] for each in events] == ["deferred", "started", "succeeded"]


class Storage:
    """Counts what runs at once, as the storage sees it, and the most of it there ever was."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.done: list[uuid.UUID] = []

    def begin(self, *places: str) -> None:
        for place in places:
            self.now[place] += 1
            self.most[place] = max(self.most[place], self.now[place])

    def end(self, task: uuid.UUID, *places: str) -> None:
        for place in places:
            self.now[place] -= 1
        self.done.append(task)


async def test_many_takers_at_once_never_exceed_a_budget(fleet: Fleet) -> None:
    """12 hosts with three connections each, 96 tasks, targets of 3 and 2 saves, 2 a host.

    Each host has tasks of both targets, and of none: its own budget holds for all of them.
    """
    targets = {"nas1": 3, "nas2": 2}
    storage = Storage()
    hosts = [f"host{n}" for n in range(12)]
    of: dict[uuid.UUID, str] = {}
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        for name, saves in targets.items():
            await kit.add_target(owner, name, saves)
        agents: list[tuple[str, Connection]] = []
        for host in hosts:
            settings = await fleet.add_host(host, saves=2)
            for n in range(8):
                target = ("nas1", "nas2", None, None)[n % 4]
                of[await kit.add_task(owner, Task(host, f"web{n}", target=target))] = str(target)
            agents += [(host, await stack.enter_async_context(agent(settings))) for _ in range(3)]

        async def work(host: str, connection: Connection) -> None:
            while task := await fetch(connection, host):
                while True:
                    if (state := await take(connection, task)) != "wait":
                        break
                    await asyncio.sleep(0.02)
                assert state == "taken"
                storage.begin(host, of[task])
                await kit.one(connection, "SELECT pg_sleep(0.01)")
                storage.end(task, host, of[task])
                assert await report(connection, task)

        async with asyncio.timeout(LONG):
            await asyncio.gather(*(work(*each) for each in agents))
        settled = await kit.one(
            owner, "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        )
    assert settled == len(storage.done) == len(set(storage.done)) == len(of) == 96
    assert {name: storage.most[name] for name in targets} == targets
    assert max(storage.most[host] for host in hosts) == 2


async def three(fleet: Fleet, stack: AsyncExitStack, owner: Connection) -> list[Connection]:
    """Return the agents of three hosts whose target has one slot."""
    await kit.add_target(owner, "nas1", 1)
    found: list[Database] = [await fleet.add_host(host, target="nas1") for host in _HOSTS]
    return [await stack.enter_async_context(agent(each)) for each in found]


async def queued(
    owner: Connection, connection: Connection, task: Task, *, taken: bool
) -> uuid.UUID:
    """Queue a task, fetch it and ask for its slot once."""
    await kit.add_task(owner, task)
    assert await fetch(connection, task.host) == task.uuid
    assert await take(connection, task.uuid) == ("taken" if taken else "wait")
    return task.uuid


async def test_the_oldest_comes_first_within_the_highest_priority(fleet: Fleet) -> None:
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, c = await three(fleet, stack, owner)
        first = await queued(owner, a, Task("rack1-a", target="nas1"), taken=True)
        old = await queued(owner, b, Task("rack1-b", target="nas1"), taken=False)
        young = await queued(owner, c, Task("rack1-c", target="nas1"), taken=False)
        urgent = Task("rack1-c", "db01", target="nas1", priority=9)
        await queued(owner, c, urgent, taken=False)
        await report(a, first)
        assert [await take(b, old), await take(c, young)] == ["wait", "wait"]
        assert await take(c, urgent.uuid) == "taken"
        await report(c, urgent.uuid)
        assert await take(c, young) == "wait"
        assert await take(b, old) == "taken"


async def test_who_no_longer_asks_and_who_may_not_do_more_keeps_no_one_waiting(
    fleet: Fleet,
) -> None:
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, c = await three(fleet, stack, owner)
        first = await queued(owner, a, Task("rack1-a", target="nas1"), taken=True)
        silent = await queued(owner, b, Task("rack1-b", target="nas1"), taken=False)
        await owner.execute("UPDATE hosts SET saves = 0 WHERE name = 'rack1-b'")
        full = Task("rack1-b", "db01", target="nas1", priority=9)
        await queued(owner, b, full, taken=False)
        last = await queued(owner, c, Task("rack1-c", target="nas1"), taken=False)
        await report(a, first)
        assert await take(c, last) == "wait"
        await owner.execute(
            "UPDATE tasks SET asked = asked - interval '31 s' WHERE uuid = %s", (silent,)
        )
        assert await take(c, last) == "taken"


@pytest.mark.parametrize(
    ("lease", "limit", "freed"),
    [("-1 s", "1 h", False), ("1 h", "-1 s", False), ("-1 s", "-1 s", True)],
)
async def test_a_slot_is_kept_until_lease_and_limit_have_both_run_out(
    fleet: Fleet, lease: str, limit: str, freed: bool
) -> None:
    """A host that is cut off may write until its save's own limit."""
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, _ = await three(fleet, stack, owner)
        lost = await queued(owner, a, Task("rack1-a", target="nas1"), taken=True)
        await owner.execute(
            "UPDATE slots SET lease_until = now() + %s::interval, limit_until = now() + %s",
            (lease, limit),
        )
        other = await queued(owner, b, Task("rack1-b", target="nas1"), taken=freed)
        # What it did is reported in the end, and frees nothing that another has taken since.
        assert await report(a, lost)
        assert await kit.status(owner, lost) == "succeeded"
        assert await take(b, other) == "taken"
        assert await kit.one(owner, "SELECT task FROM slots") == other


async def test_a_lease_is_renewed_and_a_cancelled_task_is_known_by_it(fleet: Fleet) -> None:
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, _ = await three(fleet, stack, owner)
        task = await queued(owner, a, Task("rack1-a", target="nas1"), taken=True)
        expired = "UPDATE slots SET lease_until = now() - interval '1 s', limit_until = now()"
        await owner.execute(expired)
        renew = 'SELECT renew(%s, \'{"phase": "ram"}\')'
        assert await kit.one(a, renew, task) is False
        await queued(owner, b, Task("rack1-b", target="nas1"), taken=False)
        assert (
            await kit.one(owner, "SELECT progress ->> 'phase' FROM tasks t WHERE uuid = %s", task)
            == "ram"
        )
        await owner.execute(
            "SELECT procrastinate_cancel_job_v1(job_id, true, false) FROM tasks WHERE uuid = %s",
            (task,),
        )
        assert await kit.one(a, renew, task) is True


async def test_no_slot_for_what_is_cancelled_too_late_or_over(fleet: Fleet) -> None:
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, c = await three(fleet, stack, owner)
        run = await kit.add_run(owner, max_failures=1)
        failing = await queued(owner, a, Task("rack1-a", run=run, target="nas1"), taken=True)
        waits = await queued(owner, b, Task("rack1-b", run=run, target="nas1"), taken=False)
        never = await kit.add_task(owner, Task("rack1-c", run=run, target="nas1"))
        other = await kit.add_task(owner, Task("rack1-c", "db01", target="nas1"))
        assert await report(a, failing, "failed")
        assert await take(b, waits) == "cancelled"
        assert await kit.status(owner, never) == "cancelled"
        assert await kit.status(owner, other) == "todo"
        late = Task("rack1-a", "db01", target="nas1", not_after="2001-01-01")
        await kit.add_task(owner, late)
        assert await fetch(a, "rack1-a") == late.uuid
        assert await take(a, late.uuid) == "over"
        assert await fetch(c, "rack1-c") == other
        await owner.execute(
            "SELECT procrastinate_cancel_job_v1(job_id, true, false) FROM tasks WHERE uuid = %s",
            (other,),
        )
        assert await take(c, other) == "cancelled"
        assert await kit.one(owner, "SELECT count(*) FROM slots") == 0
        stopped = Task("rack1-c", "web02", run=await kit.add_run(owner), target="nas1")
        await kit.add_task(owner, stopped)
        assert await fetch(c, "rack1-c") == stopped.uuid
        await owner.execute("UPDATE runs SET cancelled = true WHERE id = %s", (stopped.run,))
        assert await take(c, stopped.uuid) == "cancelled"


async def test_what_runs_is_adopted_beyond_the_budget_and_holds_up_what_is_new(
    fleet: Fleet,
) -> None:
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, c = await three(fleet, stack, owner)
        first = await queued(owner, a, Task("rack1-a", target="nas1"), taken=True)
        runs = await queued(owner, b, Task("rack1-b", target="nas1"), taken=False)
        waits = await queued(owner, c, Task("rack1-c", target="nas1"), taken=False)
        assert await kit.one(b, "SELECT adopt_slot(%s)", runs) is True
        assert await kit.one(b, "SELECT adopt_slot(%s)", runs) is True
        slots = await kit.all_rows(owner, "SELECT host, slot FROM slots ORDER BY slot")
        assert [(each["host"], each["slot"]) for each in slots] == [("rack1-a", 1), ("rack1-b", 2)]
        await report(a, first)
        assert await take(c, waits) == "wait"
        await report(b, runs)
        assert await take(c, waits) == "taken"


async def test_the_next_in_line_is_woken(fleet: Fleet) -> None:
    async with fleet.owner() as owner, AsyncExitStack() as stack:
        a, b, _ = await three(fleet, stack, owner)
        first = await queued(owner, a, Task("rack1-a", target="nas1"), taken=True)
        await queued(owner, b, Task("rack1-b", target="nas1"), taken=False)
        await b.execute('LISTEN "procrastinate_queue_v1#rack1-b"')
        await report(a, first)
        async for each in b.notifies(timeout=LONG, stop_after=1):
            assert each.payload == '{"type" : "slot_free", "target" : "nas1"}'
            break
        else:
            pytest.fail("no notification")


async def test_two_slots_that_are_free_at_once_wake_two_hosts(fleet: Fleet) -> None:
    a, b, c = [await fleet.add_host(name) for name in _HOSTS]
    async with agent(a) as holds, agent(b) as first, agent(c) as second, fleet.owner() as owner:
        await kit.add_target(owner, "nas1", 2)
        held = [
            await queued(owner, holds, Task(_HOSTS[0], guest, target="nas1"), taken=True)
            for guest in ("web01", "web02")
        ]
        for host, name in ((first, _HOSTS[1]), (second, _HOSTS[2])):
            await queued(owner, host, Task(name, target="nas1"), taken=False)
            await host.execute(f'LISTEN "procrastinate_queue_v1#{name}"')
        async with holds.transaction():  # both at the same moment
            for task in held:
                await report(holds, task)
        for host in (first, second):
            heard = [each async for each in host.notifies(timeout=LONG, stop_after=1)]
            assert "slot_free" in heard[0].payload
