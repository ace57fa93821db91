"""The database is replaced by an older copy of itself: what hosts do meanwhile is not in it."""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from mapsave.database_settings import Database

from tests.fleet.agents import agent, fetch, report, says, take
from tests.kit import fleet as kit
from tests.kit import postgres, wait
from tests.kit.fleet import Fleet, Task


def at(settings: Database, fleet: Fleet, directory: Path) -> Database:
    """Return how the role of ``settings`` connects to another database."""
    assert settings.dsn_file is not None
    words = settings.dsn_file.read_text().split()
    host = f"host={fleet.cluster.directory}"
    changed = [
        host if word.startswith("host=") else f"dbname={fleet.name}" if "dbname=" in word else word
        for word in words
    ]
    path = directory / f"{settings.dsn_file.stem}-{fleet.name}.dsn"
    path.touch(mode=0o600)
    path.write_text(" ".join(changed))
    return Database(dsn_file=path)


@contextlib.asynccontextmanager
async def dumped(fleet: Fleet) -> AsyncIterator[Fleet]:
    """Yield a copy of a fleet: pg_dump, and pg_restore into another database of the cluster."""
    name = f"{fleet.name}copy"
    file = fleet.cluster.directory / f"{name}.dump"
    fleet.cluster.run("pg_dump", "-Fc", "-f", file, fleet.cluster.dsn(fleet.name, "postgres"))
    fleet.cluster.sql(f"CREATE DATABASE {name} OWNER {postgres.OWNER}")
    try:
        fleet.cluster.run("pg_restore", "-d", fleet.cluster.dsn(name, "postgres"), file)
        yield Fleet(fleet.cluster, name, fleet.directory)
    finally:
        fleet.cluster.sql(f"DROP DATABASE {name} (FORCE)")


async def test_a_job_id_that_is_handed_out_again_is_another_task(
    fleet: Fleet, tmp_path: Path
) -> None:
    """What the host does for the lost task settles nothing of the new one with its number."""
    settings = await fleet.add_host("rack1-a", target=None)
    async with fleet.owner() as owner:
        await kit.add_target(owner, "nas1", 1)
        await owner.execute("UPDATE hosts SET target = 'nas1'")
    async with dumped(fleet) as copy:
        lost, new = Task("rack1-a", "web01", target="nas1"), Task("rack1-a", "db01", target="nas1")
        async with fleet.owner() as owner, agent(settings) as host:
            await kit.add_task(owner, lost)
            assert await fetch(host, "rack1-a") == lost.uuid
            assert await take(host, lost.uuid) == "taken"
            old = await kit.one(owner, "SELECT job_id FROM tasks")
        elsewhere = at(settings, copy, tmp_path)
        async with copy.owner() as owner, agent(elsewhere) as host:
            await kit.add_task(owner, new)
            assert await kit.one(owner, "SELECT job_id FROM tasks") == old
            assert await fetch(host, "rack1-a") == new.uuid
            adopt = "SELECT adopt_slot(%s, 'nas1', 600)"
            assert await kit.one(host, adopt, lost.uuid) is True
            assert await says(host) == 4
            assert await take(host, new.uuid) == "wait"
            operation = await kit.one(owner, "SELECT operation FROM slots")
            assert operation == lost.operation
            assert await report(host, lost.uuid) is False
            assert await kit.status(owner, new.uuid) == "doing"
            # One whose operation was not begun in the end asks for its slot, and gives it back.
            assert await kit.one(host, adopt, lost.uuid) is True
            assert await take(host, new.uuid) == "wait"
            assert await take(host, lost.uuid) == "unknown"
            assert await take(host, new.uuid) == "taken"


async def test_an_unknown_task_counts_within_the_hosts_own_budget_and_target(
    fleet: Fleet,
) -> None:
    """Else an agent could take all slots of all targets, by tasks that it makes up."""
    settings = await fleet.add_host("rack1-a", saves=1)
    other = await fleet.add_host("rack1-b")
    async with fleet.owner() as owner, agent(settings) as host:
        await kit.add_target(owner, "nas1", 4)
        await kit.add_target(owner, "nas2", 4)
        await owner.execute("UPDATE hosts SET target = 'nas1'")
        theirs = await kit.add_task(owner, Task("rack1-b", target="nas1"))
        adopt = "SELECT adopt_slot(%s, %s, 100000000)"
        assert await kit.one(host, adopt, Task("rack1-a").uuid, "nas2") is False
        assert await kit.one(host, adopt, theirs, "nas1") is False
        assert await kit.one(host, adopt, Task("rack1-a").uuid, "nas1") is True
        assert await kit.one(host, adopt, Task("rack1-a").uuid, "nas1") is False
        kept = "SELECT limit_until < now() + interval '25 hours' FROM slots"
        assert await kit.one(owner, kept) is True
        async with agent(other) as neighbour:
            assert await fetch(neighbour, "rack1-b") == theirs
            assert await take(neighbour, theirs) == "taken"


async def test_a_copy_gives_no_slot_before_the_hosts_have_spoken(
    fleet: Fleet, tmp_path: Path
) -> None:
    a = await fleet.add_host("rack1-a", target=None)
    b = await fleet.add_host("rack1-b", target=None)
    async with fleet.owner() as owner, agent(a) as first, agent(b) as second:
        await kit.add_target(owner, "nas1", 2)
        task = await kit.add_task(owner, Task("rack1-a", target="nas1"))
        await says(first)
        await says(second)
        assert await fetch(first, "rack1-a") == task
    async with (
        dumped(fleet) as copy,
        copy.owner() as owner,
        agent(at(a, copy, tmp_path)) as first,
    ):
        assert await take(first, task) == "wait"
        await says(first)
        (slot,) = await kit.all_rows(first, "SELECT * FROM take_slot(%s)", task)
        assert slot["state"] == "wait"
        assert "word from 1 hosts" in slot["why"]
        async with agent(at(b, copy, tmp_path)) as second:
            await says(second)
        assert await take(first, task) == "taken"
        assert await report(first, task)
        # A host that stays silent is waited for as long as a lease.
        late = await kit.add_task(owner, Task("rack1-a", target="nas1"))
        assert await fetch(first, "rack1-a") == late
        await owner.execute("UPDATE hosts SET last_word = 'epoch' WHERE name = 'rack1-b'")
        assert await take(first, late) == "wait"
        await owner.execute("UPDATE meta SET lease = '1 ms'")
        assert await take(first, late) == "taken"


async def test_a_server_that_was_killed_knows_all_that_was_settled_or_taken(
    own_cluster: postgres.Cluster, tmp_path: Path
) -> None:
    fleet = await kit.made(own_cluster, "fleet", tmp_path)
    settings = await fleet.add_host("rack1-a")
    done, taken = Task("rack1-a", target="nas1"), Task("rack1-a", "db01", target="nas1")
    async with fleet.owner() as owner, agent(settings) as host:
        await kit.add_target(owner, "nas1", 2)
        for task in (done, taken):
            await kit.add_task(owner, task)
            assert await fetch(host, "rack1-a") == task.uuid
            assert await take(host, task.uuid) == "taken"
        assert await report(host, done.uuid)
        own_cluster.stop(signal.SIGKILL)
    own_cluster.start()
    async with fleet.owner() as owner, agent(settings) as host:
        assert await kit.status(owner, done.uuid) == "succeeded"
        assert await report(host, done.uuid) is False
        assert await kit.status(owner, taken.uuid) == "doing"
        assert await kit.one(owner, "SELECT task FROM slots") == taken.uuid


async def test_a_base_backup_that_takes_over_waits_for_what_runs(
    own_cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """The copy is older than a slot: its host says so before anyone else gets that slot."""
    fleet = await kit.made(own_cluster, "fleet", tmp_path)
    a, b = await fleet.add_host("rack1-a"), await fleet.add_host("rack1-b")
    runs, waits = Task("rack1-a", target="nas1"), Task("rack1-b", target="nas1")
    async with fleet.owner() as owner, agent(a) as first, agent(b) as second:
        await kit.add_target(owner, "nas1", 1)
        for task in (runs, waits):
            await kit.add_task(owner, task)
        assert [await says(each) for each in (first, second)] == [4, 4]
        with postgres.copied(own_cluster) as backup:
            assert await fetch(first, "rack1-a") == runs.uuid
            assert await take(first, runs.uuid) == "taken"
            own_cluster.stop(signal.SIGKILL)
            backup.start()
            copy = Fleet(backup, "fleet", tmp_path)
            a, b = at(a, copy, tmp_path), at(b, copy, tmp_path)
            async with copy.owner() as owner, agent(a) as first, agent(b) as second:
                assert await kit.status(owner, runs.uuid) == "todo"
                await says(second)
                assert await fetch(second, "rack1-b") == waits.uuid
                assert await take(second, waits.uuid) == "wait"
                assert await fetch(first, "rack1-a") == runs.uuid
                assert await kit.one(first, "SELECT adopt_slot(%s)", runs.uuid) is True
                await says(first)
                assert await take(second, waits.uuid) == "wait"
                assert await report(first, runs.uuid)
                assert await take(second, waits.uuid) == "taken"


async def test_a_standby_that_is_promoted_is_a_copy_too(
    own_cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """Its server has run all the time, and its database is the same: the timeline is not."""
    fleet = await kit.made(own_cluster, "fleet", tmp_path)
    a, b = await fleet.add_host("rack1-a"), await fleet.add_host("rack1-b")
    task = Task("rack1-a", target="nas1")
    with postgres.copied(own_cluster, is_standby=True) as standby:
        standby.start()
        async with fleet.owner() as owner, agent(a) as first, agent(b) as second:
            await kit.add_target(owner, "nas1", 1)
            await kit.add_task(owner, task)
            assert [await says(each) for each in (first, second)] == [4, 4]
            written = own_cluster.sql("SELECT pg_current_wal_flush_lsn()")
        there = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
        wait.until(lambda: standby.sql(there) == "t", what="what was written last")
        own_cluster.stop(signal.SIGKILL)
        standby.sql("SELECT pg_promote()")
        copy = Fleet(standby, "fleet", tmp_path)
        a, b = at(a, copy, tmp_path), at(b, copy, tmp_path)
        async with agent(a) as first, agent(b) as second:
            await says(first)
            assert await fetch(first, "rack1-a") == task.uuid
            assert await take(first, task.uuid) == "wait"
            await says(second)
            assert await take(first, task.uuid) == "taken"
