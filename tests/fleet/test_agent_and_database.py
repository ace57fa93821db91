"""The agent where its database goes away, lies, or comes back as an older copy; and a real QEMU."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mapsave.database_settings import Database
from mapsave.fleet import schema
from mapsave.fleet.database import Connection

from tests.fleet import hosts
from tests.fleet.hosts import Host, save
from tests.kit import emulated, postgres, qemu, service, wait
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet, Task

HOST = "rack1-a"
SLOW = "2M"  # bytes per second of a guest of 8 MiB


@pytest.fixture
async def durable(own_cluster: postgres.Cluster, tmp_path: Path) -> Fleet:
    """A fleet in a cluster that may be killed."""
    own_cluster.sql(f"CREATE DATABASE fleet OWNER {postgres.OWNER}")
    found = Fleet(own_cluster, "fleet", tmp_path)
    await schema.init(found.settings)
    return found


@pytest.fixture
async def settings(durable: Fleet) -> Database:
    """How the host's agent connects."""
    async with durable.owner() as owner:
        await kit.add_target(owner, "nas1", 2)
    return await durable.add_host(HOST, target="nas1")


@pytest.fixture
def host(settings: Database, tmp_path: Path) -> Iterator[Host]:
    """A host whose guest is saved slowly."""
    with (
        hosts.host(tmp_path / "hosts", HOST, settings) as found,
        hosts.serving(found, "web01", throttle=SLOW),
    ):
        yield found


async def begun(durable: Fleet, host: Host, **more: object) -> Task:
    """Queue a save, and wait until it runs on the host."""
    async with durable.owner() as owner:
        task = await hosts.add(owner, host, save("web01"), target="nas1", **more)

    def runs() -> bool:
        return any(each["step"] == "migrate" for each in host.operations())

    await asyncio.to_thread(wait.until, runs, what="the save under way")
    return task


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_save_goes_on_without_the_database_and_is_reported(
    durable: Fleet, host: Host, how: signal.Signals
) -> None:
    with hosts.agent(host) as agent:
        task = await begun(durable, host)
        durable.cluster.stop(how)
        assert host.mapsaved.ended(task.operation)["state"] == "done"
        agent.await_log("trying again")
        durable.cluster.start()
        async with durable.owner() as owner:
            assert (await hosts.settled(owner, task))[0] == "succeeded"
            assert await kit.one(owner, "SELECT count(*) FROM slots") == 0
            # What comes afterwards is done as before.
            more = await hosts.add(owner, host, save("web01"), target="nas1")
            assert (await hosts.settled(owner, more))[0] == "succeeded"
    assert len(host.operations()) == len(host.images()) == 2


@pytest.mark.parametrize("moment", ["while it waits for a slot", "while it runs"])
async def test_an_older_copy_takes_over(
    durable: Fleet, settings: Database, host: Host, moment: str
) -> None:
    """The copy knows the task as one that is still to be done; it is done once all the same."""
    with hosts.agent(host):
        async with durable.owner() as owner:
            await owner.execute("UPDATE targets SET saves = 0")
            task = await hosts.add(owner, host, save("web01"), target="nas1")
            await hosts.becomes(owner, task, "doing")
            await owner.execute("UPDATE procrastinate_jobs SET status = 'todo'")
            with postgres.copied(durable.cluster) as copy:
                await owner.execute("UPDATE procrastinate_jobs SET status = 'doing'")
                if moment == "while it runs":
                    await owner.execute("UPDATE targets SET saves = 1")
                    await asyncio.to_thread(
                        wait.until, lambda: bool(host.operations()), what="the save"
                    )
                await owner.close()
                durable.cluster.stop(signal.SIGKILL)
                assert settings.dsn_file is not None
                text = settings.dsn_file.read_text()
                settings.dsn_file.write_text(
                    text.replace(str(durable.cluster.directory), str(copy.directory))
                )
                copy.start()
                taken = Fleet(copy, "fleet", durable.directory)
                async with taken.owner() as again:
                    await again.execute("UPDATE targets SET saves = 1")
                    status, outcome = await hosts.settled(again, task)
                    assert (status, outcome["error"]) == ("succeeded", None)
                    assert await kit.one(again, "SELECT count(*) FROM slots") == 0
    assert [each["id"] for each in host.operations()] == [task.operation]
    assert len(host.images()) == 1


LIES = {
    # What the functions of a database that was taken over answer.
    "other types": "CREATE FUNCTION take_slot(uuid) RETURNS TABLE (state int, why bytea)"
    " LANGUAGE sql AS $$ SELECT 7, '\\x00'::bytea $$",
    "nothing": "CREATE FUNCTION take_slot(uuid) RETURNS SETOF text LANGUAGE sql"
    " AS $$ SELECT 'taken' WHERE false $$",
    "error": "CREATE FUNCTION take_slot(uuid) RETURNS text LANGUAGE plpgsql"
    " AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
}


@pytest.fixture
async def owner(fleet: Fleet) -> AsyncIterator[Connection]:
    async with fleet.owner() as connection:
        yield connection


@pytest.mark.parametrize("lie", LIES)
async def test_what_a_strange_database_answers_begins_nothing(
    fleet: Fleet, owner: Connection, tmp_path: Path, lie: str
) -> None:
    with (
        hosts.host(tmp_path, HOST, await fleet.add_host(HOST)) as host,
        hosts.serving(host, "web01"),
    ):
        await owner.execute("ALTER FUNCTION take_slot(uuid) RENAME TO honest")
        await owner.execute(LIES[lie])
        await owner.execute("GRANT EXECUTE ON FUNCTION take_slot TO PUBLIC")
        with hosts.agent(host) as agent:
            task = await hosts.add(owner, host, save("web01"))
            await hosts.becomes(owner, task, "doing")
            agent.await_log("connected")
            await asyncio.sleep(1)  # what would be begun is begun by then
            assert agent.process.poll() is None
            assert host.operations() == []
            await owner.execute("DROP FUNCTION take_slot")
            await owner.execute("ALTER FUNCTION honest(uuid) RENAME TO take_slot")
            assert (await hosts.settled(owner, task))[0] == "succeeded"


async def test_an_agent_with_the_role_of_another_host_does_nothing(
    fleet: Fleet, owner: Connection, tmp_path: Path
) -> None:
    await fleet.add_host("rack1-b")
    with (
        hosts.host(tmp_path, "rack1-b", await fleet.add_host(HOST)) as host,
        hosts.serving(host),
        hosts.agent(host) as agent,
    ):
        agent.await_log(f"is of '{HOST}', not of the host 'rack1-b'")
        assert await kit.one(owner, "SELECT count(last_word) FROM hosts") == 0


async def test_a_real_guest_is_saved_and_comes_back(
    fleet: Fleet, owner: Connection, tmp_path: Path
) -> None:
    await kit.add_target(owner, "nas1", 1)
    with (
        hosts.host(tmp_path, HOST, await fleet.add_host(HOST, target="nas1")) as host,
        qemu.guest(host.site, "web01", paused=False) as guest,
        service.running(host.site),
        hosts.agent(host),
    ):
        body = save("web01", image="one", then="quit")
        away = await hosts.add(owner, host, body, target="nas1")
        status, outcome = await hosts.settled(owner, away)
        assert (status, outcome["image"], outcome["error"]) == ("succeeded", "one", None)
        await asyncio.to_thread(guest.wait)
        back = {"kind": "restore", "image": "one"}
        restored = await hosts.add(owner, host, back, target="nas1")
        status, outcome = await hosts.settled(owner, restored)
        try:
            assert (status, outcome["error"]) == ("succeeded", None)
            assert emulated.status(guest.qmp) == "running"
        finally:
            emulated.end(guest.qmp)
