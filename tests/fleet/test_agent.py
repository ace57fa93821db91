"""The agent: what the fleet asks for is done once, and reported, whatever dies when."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mapsave.fleet.database import Connection

from tests.fleet import hosts
from tests.fleet.hosts import Host, save
from tests.kit import cli, emulated, service, wait
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet
from tests.service.datagrams import receiver, told

HOST = "rack1-a"
SLOW = "2M"  # bytes per second of a guest of 8 MiB: there is time to kill something


@pytest.fixture
async def owner(fleet: Fleet) -> AsyncIterator[Connection]:
    """The owner's connection to a fleet with one target."""
    async with fleet.owner() as connection:
        await kit.add_target(connection, "nas1", 2, 1 << 30)
        yield connection


@pytest.fixture
async def bare(fleet: Fleet, owner: Connection, tmp_path: Path) -> AsyncIterator[Host]:
    """A host of the fleet on which nothing runs."""
    with hosts.host(tmp_path, HOST, await fleet.add_host(HOST, target="nas1")) as found:
        yield found


@pytest.fixture
def host(bare: Host) -> Iterator[Host]:
    """A host with its service and two guests."""
    with hosts.serving(bare, "web01", "db"):
        yield bare


@pytest.fixture
def slow(bare: Host) -> Iterator[Host]:
    """A host whose guests are saved slowly."""
    with hosts.serving(bare, "web01", throttle=SLOW):
        yield bare


async def running(found: Host, operation: str) -> None:
    """Wait until an operation runs on the host."""

    def runs() -> bool:
        answer = found.mapsaved.request("GET", f"/v1/operations/{operation}")
        return answer.status == 200 and answer.json()["step"] == "migrate"

    await asyncio.to_thread(wait.until, runs, what="the save under way")


async def test_a_save_is_done_once_and_reported(owner: Connection, host: Host) -> None:
    with hosts.agent(host):
        task = await hosts.add(owner, host, save("web01", image="one"), target="nas1")
        status, outcome = await hosts.settled(owner, task)
        assert (status, outcome["image"], outcome["error"]) == ("succeeded", "one", None)
        assert outcome["operation"]["id"] == task.operation
        assert outcome["result"]["guest"] == "web01"
        assert "commit" in [each["step"] for each in outcome["steps"]]
        assert [each["id"] for each in host.operations()] == [task.operation]
        assert host.operations()[0]["request"]["save"]["bandwidth"] == 1 << 29
        assert await kit.one(owner, "SELECT count(*) FROM slots") == 0
        # What is on the host is known by then, or a moment later.
        guests = "SELECT count(*) = 2 FROM guests WHERE host = %s AND facts ->> 'state' = 'running'"
        await hosts.until(owner, guests, HOST)
        images = "SELECT count(*) = 1 FROM images WHERE (host, image, guest) = (%s, 'one', 'web01')"
        await hosts.until(owner, images, HOST)
        word = "SELECT service ->> 'status' = 'ok' AND last_word IS NOT NULL FROM hosts"
        await hosts.until(owner, word)
        # A database that was restored from a copy delivers it once more.
        await owner.execute("UPDATE procrastinate_jobs SET status = 'todo'")
        await owner.execute("SELECT pg_notify('procrastinate_queue_v1#rack1-a', '{}')")
        status, outcome = await hosts.settled(owner, task)
        assert (status, outcome["image"]) == ("succeeded", "one")
        await hosts.forgets(host)
    assert len(host.operations()) == 1
    assert host.images() == ["one"]


async def test_a_guest_is_evacuated_and_comes_back(owner: Connection, host: Host) -> None:
    with hosts.agent(host):
        away = await hosts.add(owner, host, save("web01", image="one", then="quit"))
        assert (await hosts.settled(owner, away))[0] == "succeeded"
        assert not emulated.answers(emulated.socket_of(host.site, "web01"))
        body = {"kind": "restore", "image": "one", "restore": {"run": "run"}}
        back = await hosts.add(owner, host, body)
        status, outcome = await hosts.settled(owner, back)
        assert (status, outcome["error"]) == ("succeeded", None)
        assert emulated.status(emulated.socket_of(host.site, "web01")) == "running"


KILLED = {
    "noted": """
from mapsave.fleet import local_service
async def begin(*_):
    os.kill(os.getpid(), signal.SIGKILL)
local_service.LocalService.begin = begin
""",
    "begun": """
from mapsave.fleet import local_service
ours = local_service.LocalService.begin
async def begin(*arguments):
    await ours(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
local_service.LocalService.begin = begin
""",
    "ended": """
from mapsave.fleet import performing
async def report(*_):
    os.kill(os.getpid(), signal.SIGKILL)
performing.Performance._report = report
""",
}


@pytest.mark.parametrize("moment", KILLED)
async def test_an_agent_that_was_killed_leaves_one_save(
    owner: Connection, host: Host, moment: str
) -> None:
    with hosts.agent(host, code=f"import os, signal\n{KILLED[moment]}") as first:
        task = await hosts.add(owner, host, save("web01"), target="nas1")
        assert await asyncio.to_thread(first.process.wait, wait.LONG) == -signal.SIGKILL
    assert await kit.status(owner, task.uuid) == "doing"
    assert len(host.operations()) == (moment != "noted")
    with hosts.agent(host):
        assert (await hosts.settled(owner, task))[0] == "succeeded"
        await hosts.forgets(host)
    assert [each["id"] for each in host.operations()] == [task.operation]
    assert len(host.images()) == 1


async def test_an_agent_that_is_stopped_leaves_the_task_to_the_next(
    owner: Connection, slow: Host
) -> None:
    with hosts.agent(slow) as first:
        task = await hosts.add(owner, slow, save("web01"), target="nas1")
        await running(slow, task.operation)
        assert await asyncio.to_thread(first.stop) == 0
    assert await kit.status(owner, task.uuid) == "doing"
    assert await kit.one(owner, "SELECT count(*) FROM slots") == 1
    with hosts.agent(slow):
        assert (await hosts.settled(owner, task))[0] == "succeeded"
    assert [each["id"] for each in slow.operations()] == [task.operation]


async def test_an_agent_killed_while_it_waits_for_a_slot(owner: Connection, host: Host) -> None:
    await owner.execute("UPDATE targets SET saves = 0")
    with hosts.agent(host) as first:
        task = await hosts.add(owner, host, save("web01"), target="nas1")
        waits = "SELECT asked IS NOT NULL FROM tasks WHERE uuid = %s"
        await hosts.until(owner, waits, task.uuid)
        first.kill()
    await owner.execute("UPDATE targets SET saves = 1")
    with hosts.agent(host):
        assert (await hosts.settled(owner, task))[0] == "succeeded"
    assert len(host.operations()) == 1


async def test_a_service_that_is_killed_recovers_and_the_fleet_hears_of_it(
    owner: Connection, slow: Host
) -> None:
    with hosts.agent(slow):
        task = await hosts.add(owner, slow, save("web01"), target="nas1")
        await running(slow, task.operation)
        slow.mapsaved.kill()
        await asyncio.sleep(0.1)
        assert await kit.status(owner, task.uuid) == "doing"
        with service.running(slow.site) as again:
            slow.running = again
            status, outcome = await hosts.settled(owner, task)
            (found,) = slow.operations()
            expected = {"done": "succeeded", "cancelled": "failed"}
            assert status == expected[found["state"]]
            assert outcome["operation"]["state"] == found["state"]
            assert len(slow.images()) == (found["state"] == "done")
            assert emulated.status(emulated.socket_of(slow.site, "web01")) == "running"


async def test_a_task_waits_for_a_service_that_is_away(owner: Connection, bare: Host) -> None:
    with hosts.agent(bare):
        task = await hosts.add(owner, bare, save("web01"))
        await hosts.becomes(owner, task, "doing")
        await hosts.until(owner, "SELECT NOT (service ->> 'reachable')::boolean FROM hosts")
        assert not bare.begun.exists() or not list(bare.begun.iterdir())
        with hosts.serving(bare, "web01"):
            assert (await hosts.settled(owner, task))[0] == "succeeded"


async def test_a_save_is_cancelled_from_the_fleet(owner: Connection, slow: Host) -> None:
    with hosts.agent(slow):
        task = await hosts.add(owner, slow, save("web01"), target="nas1")
        await running(slow, task.operation)
        await hosts.cancel(owner, task)
        status, outcome = await hosts.settled(owner, task)
        assert (status, outcome["error"]["id"]) == ("aborted", "interrupted")
        (found,) = slow.operations()
        assert (found["state"], slow.images()) == ("cancelled", [])
        assert emulated.status(emulated.socket_of(slow.site, "web01")) == "running"


async def test_a_task_that_waits_is_cancelled_or_too_late(owner: Connection, host: Host) -> None:
    await owner.execute("UPDATE targets SET saves = 0")
    with hosts.agent(host):
        task = await hosts.add(owner, host, save("web01"), target="nas1")
        await hosts.until(owner, "SELECT asked IS NOT NULL FROM tasks WHERE uuid = %s", task.uuid)
        await hosts.cancel(owner, task)
        status, outcome = await hosts.settled(owner, task)
        assert (status, outcome["error"]["id"]) == ("aborted", "interrupted")
        late = await hosts.add(owner, host, save("db"), target="nas1", not_after="2020-01-01")
        status, outcome = await hosts.settled(owner, late)
        assert (status, outcome["error"]["id"]) == ("failed", "fleet.window")
    assert host.operations() == []


REFUSED = {
    "a kind": ({"kind": "discard", "image": "one", "unrestored": True}, "fleet.task"),
    "an option": (save("web01", replace=True), "fleet.task"),
    "an address": (save("qmp:/run/qemu.sock"), "fleet.task"),
    "a guest": (save("missing"), "guest.unknown"),
    "an image": ({"kind": "restore", "image": "missing"}, "image.not_found"),
    "nothing": (None, "fleet.task"),
}


async def test_what_is_refused_says_why(owner: Connection, host: Host) -> None:
    with hosts.agent(host):
        tasks = {
            name: await hosts.add(owner, host, body, guest=f"guest {name}")
            for name, (body, _) in REFUSED.items()
        }
        strange = await hosts.add(owner, host, save("web01"), guest="x")
        await owner.execute(
            "UPDATE procrastinate_jobs SET args = '{\"task\": [1]}' FROM tasks"
            " WHERE job_id = id AND uuid = %s",
            (strange.uuid,),
        )
        for name, task in tasks.items():
            status, outcome = await hosts.settled(owner, task)
            assert (status, outcome["error"]["id"]) == ("failed", REFUSED[name][1]), name
            assert outcome["error"]["message"]
        # The agent goes on.
        good = await hosts.add(owner, host, save("web01"))
        assert (await hosts.settled(owner, good))[0] == "succeeded"
    assert {each["kind"] for each in host.operations("discard")} == set()


@pytest.mark.root
async def test_roots_agent_is_an_operator(owner: Connection, host: Host) -> None:
    """Even where an agent let everything through, its service would not."""
    code = """
from mapsave.fleet import accepted
accepted._accepted = lambda kind, body, limit: body
accepted._KINDS["discard"] = accepted._KINDS["save"]
"""
    with hosts.agent(host, code=code):
        bodies = [{"kind": "discard", "image": "one"}, save("qmp:/run/qemu.sock")]
        for body in bodies:
            task = await hosts.add(owner, host, body)
            status, outcome = await hosts.settled(owner, task)
            assert (status, outcome["error"]["id"]) == ("failed", "permission.role"), outcome


async def test_where_the_history_was_lost_nothing_is_begun_again(
    owner: Connection, host: Host
) -> None:
    before = host.mapsaved.done(**save("db", image="before"))
    assert before["guest"] == "db"
    with hosts.agent(host, code=f"import os, signal\n{KILLED['begun']}") as first:
        task = await hosts.add(owner, host, save("web01"), target="nas1")
        await asyncio.to_thread(first.process.wait, wait.LONG)
    host.mapsaved.ended(task.operation)
    host.mapsaved.stop()
    for path in host.site.state.glob("journal.db*"):
        path.unlink()
    with service.running(host.site) as again, hosts.agent(host):
        host.running = again
        status, outcome = await hosts.settled(owner, task)
        assert (status, outcome["error"]["id"]) == ("failed", "fleet.outcome_unknown")
        assert host.operations() == []
        assert len(host.images()) == 2
        await hosts.forgets(host)


async def test_a_host_has_one_agent(fleet: Fleet, host: Host, tmp_path: Path) -> None:
    with hosts.agent(host) as first:
        first.await_log("connected to the database")
        assert (
            host.site.run("fleet", "agent", "--json", check=8).error_id() == "fleet.agent_running"
        )
        # As on another machine that was given the same role.
        (tmp_path / "else").mkdir()
        with hosts.host(tmp_path / "else", HOST, await fleet.add_host("other")) as other:
            other.site.settings["fleet"] = {
                **host.site.settings["fleet"],
                "state": str(tmp_path / "own"),
            }
            other.site.write()
            found = await asyncio.to_thread(other.site.run, "fleet", "agent", "--json", check=8)
            assert found.error_id() == "fleet.agent_running"
        assert first.process.poll() is None


async def test_systemd_hears_how_the_agent_is(
    owner: Connection, bare: Host, tmp_path: Path
) -> None:
    """It is ready before the database is there: that may be away for days."""
    assert await kit.one(owner, "SELECT count(*) FROM hosts") == 1
    address = str(tmp_path / "notify")
    heard: list[str] = []
    with receiver(address) as sock:

        def is_heard(word: str) -> bool:
            heard.extend(told(sock))
            return word in heard

        async def hear(word: str) -> None:
            await asyncio.to_thread(wait.until, lambda: is_heard(word), what=word)

        with hosts.agent(bare, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"}) as agent:
            await hear(f"STATUS=host {HOST}: connected; tasks: 0")
            assert heard[0] in ("READY=1", "WATCHDOG=1")
            await hear("READY=1")
            await hear("WATCHDOG=1")
            assert await asyncio.to_thread(agent.stop) == 0
            await hear("STOPPING=1")


def test_a_host_that_is_in_no_fleet_is_told_so(tmp_path: Path) -> None:
    error = cli.Site(tmp_path / "site").run("fleet", "agent", "--json", check=2).error()
    assert (error["id"], "fleet" in error["message"]) == ("config.invalid", True)
