"""What each role may do in the database of a fleet, and what it may not."""

import psycopg
import pytest
from mapsave.fleet import database

from tests.kit import fleet as kit
from tests.kit.fleet import Fleet, Task


async def test_an_agent_sees_and_takes_its_own_hosts_tasks_only(fleet: Fleet) -> None:
    mine, other = await fleet.add_host("rack1-a"), await fleet.add_host("rack1-b")
    async with fleet.owner() as owner, database.connected(mine, "agent") as agent:
        await kit.add_task(owner, Task("rack1-b", guest="secret"))
        theirs = Task("rack1-b")
        await kit.add_task(owner, theirs)
        assert await kit.all_rows(agent, "SELECT * FROM procrastinate_jobs") == []
        taken = "SELECT id FROM procrastinate_fetch_job_v2(ARRAY['rack1-b'], NULL)"
        assert await kit.one(agent, taken) is None
        for query in ("UPDATE procrastinate_jobs SET status = 'doing'",):
            assert (await agent.execute(query)).rowcount == 0
        (slot,) = await kit.all_rows(agent, "SELECT * FROM take_slot(%s)", theirs.uuid)
        assert slot["state"] == "unknown"
        assert await kit.one(agent, "SELECT report(%s, 'succeeded', NULL)", theirs.uuid) is False
        assert await kit.status(owner, theirs.uuid) == "todo"
    async with database.connected(other, "agent") as agent:
        assert len(await kit.all_rows(agent, "SELECT * FROM procrastinate_jobs")) == 2


@pytest.mark.parametrize(
    "table",
    [
        *("meta", "targets", "hosts", "guests", "images", "runs", "tasks", "slots", "requests"),
        *("job_clock", "leader", "term", "procrastinate_events", "procrastinate_periodic_defers"),
    ],
)
async def test_an_agent_reads_no_table_but_its_queue(fleet: Fleet, table: str) -> None:
    settings = await fleet.add_host("rack1-a")
    async with database.connected(settings, "agent") as agent:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await agent.execute(f"SELECT * FROM {table}")
