"""The commands of ``mapsave fleet``, with a scheduler and hosts that do what the test says."""

import asyncio
import json
import os
import pty
import select
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.fleet import schedulers
from tests.fleet.scheduling import HOSTS, Agent, agents
from tests.kit import cli, processes, tree, wait
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet

T = TypeVar("T")
JOBS = HOSTS + "jobs: {web: {guests: ['web*']}, all: {guests: ['*']}}\n"
GONE = {"id": "save.failed", "exit_code": 4, "message": "the disk is full", "hint": None}


def run(path: Path, *words: str, check: int | None = 0, **how: Any) -> cli.Result:
    return cli.mapsave("fleet", *words, "--fleet", str(path), check=check, **how)


def shown(path: Path, *words: str, check: int | None = 0) -> dict[str, Any]:
    return run(path, *words, "--json", check=check).json()


async def _until(ask: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until there is an answer."""
    async with asyncio.timeout(wait.LONG):
        while True:
            if (found := await ask()) is not None:
                return found
            await asyncio.sleep(0.05)


async def _ready(agent: Agent, *guests: str) -> None:
    """Work off a task for each guest, once the scheduler has made it."""
    for guest in guests:
        args = await _until(agent.fetch)
        assert args["request"]["guest"] == guest
        assert await agent.slot(args["task"]) == "taken"
        if guest == "web02":
            await agent.report(args["task"], "failed", error=GONE)
        else:
            steps = [{"time": "2026-01-01T00:00:00+00:00", "step": "commit", "data": {}}]
            await agent.report(args["task"], image=f"{guest}.img", steps=steps)


async def test_run_and_what_is_shown_of_it(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a", "rack1-b") as hosts:
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("leading")
            done = asyncio.create_task(
                asyncio.to_thread(shown, path, "run", "web", "--wait", check=4)
            )
            for agent in hosts.values():
                await _ready(agent, "web01", "web02")
            result = await done
        assert (result["run"], result["tasks"], result["exit_code"]) == (1, 4, 4)
        assert result["counts"] == {"succeeded": 2, "failed": 2}
        assert [each["outcome"]["error"] for each in result["failures"]] == [GONE, GONE]
        text = run(path, "wait", "1", check=4).stdout
        assert "web02  rack1-a  failed   " in text
        assert "the disk is full [save.failed]" in text
        assert text.splitlines()[-1] == "run 1 (web): 2 done, 2 FAILED"
        found = shown(path, "ps", "--all", "web01@rack1-a")
        (task,) = found["tasks"]
        assert (found["count"], task["status"], task["outcome"]["image"]) == (
            *(1, "succeeded"),
            "web01.img",
        )
        assert shown(path, "ps") == {"count": 0, "tasks": []}
        assert run(path, "ps").stdout == "no tasks\n"
        assert shown(path, "wait", task["task"])["tasks"][0]["task"] == task["task"]
        logged = shown(path, "logs", task["task"][:6])
        assert [each["event"] for each in logged["events"]] == ["deferred", "started", "succeeded"]
        text = run(path, "logs", task["task"]).stdout
        assert "  commit\n" in text
        assert text.endswith("succeeded: web01.img\n")
        assert len(shown(path, "logs", "--limit", "7")["events"]) == 7
        assert " started " in run(path, "logs").stdout
        assert shown(path, "wait", "77", check=2)["error"]["id"] == "fleet.run_unknown"


async def test_hosts_guests_and_images(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a", "rack1-b") as hosts, fleet.owner() as owner:
        images = {"a.img": {"guest": "web01", "state": "saved", "saved": "2026-01-01"}}
        await hosts["rack1-a"].lists(["web01"], images)
        await fleet.add_host("rack1-c")
        await owner.execute(
            "UPDATE hosts SET last_word = now() - interval '1 hour' WHERE name = 'rack1-b'"
        )
        states = {each["host"]: each["state"] for each in shown(path, "hosts")["hosts"]}
        assert states == {"rack1-a": "ok", "rack1-b": "silent", "rack1-c": "never heard of"}
        lines = run(path, "hosts").stdout.splitlines()
        assert lines[0].split() == [
            *("host", "state", "last", "word", "target", "running", "queued", "guests", "version")
        ]
        assert lines[2].startswith("rack1-b  silent          1 h ago ")
        guests = shown(path, "guests", "web*@rack1-[ab]")["guests"]
        assert [(each["guest"], each["host"]) for each in guests] == [
            ("web01", "rack1-a"),
            ("web01", "rack1-b"),
            ("web02", "rack1-b"),
        ]
        assert run(path, "guests", "nothing").stdout == "no guests\n"
        assert "web01  rack1-a  running" in run(path, "guests").stdout
        (image,) = shown(path, "images")["images"]
        assert (image["image"], image["facts"]) == ("a.img", images["a.img"])
        assert run(path, "images", "*@rack1-b").stdout == "no images\n"
        assert "rack1-a  web01  saved" in run(path, "images").stdout
        refused = run(path, "guests", "@rack1-a", check=2)
        assert "names no guest" in refused.stderr


async def test_evacuate_return_and_cancel(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a", "rack1-b") as hosts:
        await hosts["rack1-a"].lists(["web01"])
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("leading")
            assert run(path, "run", "all").stdout == "run 1: 4 tasks\n"
            (task,) = shown(path, "ps", "*@rack1-a")["tasks"]
            assert (task["status"], task["run"], task["job"]) == ("todo", 1, "all")
            assert shown(path, "ps", "--limit", "2")["count"] == 4
            assert "and 2 more: --limit" in run(path, "ps", "--limit", "2").stdout
            assert shown(path, "evacuate", "rack1-a", "--deadline", "5m")["tasks"] == 1
            await _ready(hosts["rack1-a"], "web01")
            assert shown(path, "wait", "2")["runs"][0]["counts"] == {"succeeded": 1}
            assert shown(path, "return", "rack1-a")["tasks"] == 1
            assert shown(path, "cancel", "3") == {"run": 3, "cancelled": 1, "asked": 0}
            assert run(path, "cancel", "1").stdout == "run 1: 3 tasks cancelled\n"
            assert run(path, "wait", "3", check=9).stdout.endswith(
                "run 3 (return rack1-a): 1 cancelled; cancelled by mapsave\n"
            )
            refused = shown(path, "evacuate", "rack7", check=2)["error"]
            assert refused["id"] == "fleet.host_unknown"


async def test_status_and_metrics(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a") as hosts:
        found = shown(path, "status")
        assert (found["is_led"], found["term"], found["todo"]) == (False, 0, 0)
        assert run(path, "status").stdout.startswith("no scheduler leads\n")
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("leading")
            run(path, "run", "web")
            args = await hosts["rack1-a"].fetch()
            assert args is not None
            assert await hosts["rack1-a"].slot(args["task"]) == "taken"
            found = shown(path, "status")
        assert (found["is_led"], found["doing"], found["todo"]) == (True, 1, 1)
        assert {each["target"]: each["used"] for each in found["targets"]} == {"nas1": 1, "nas2": 0}
        assert found["jobs"][0]["job"] == "web"
        text = run(path, "status", "--metrics").stdout
        assert 'mapsave_fleet_host_operations{host="rack1-a"} 1.0\n' in text
        assert 'mapsave_fleet_tasks{state="todo"} 1.0\n' in text
        assert "mapsave_fleet_scheduler_leading" not in text
        text = run(path, "status").stdout
        assert "tasks: 1 under way, 1 queued, 0 for later" in text
        assert "nas1    1 of 2" in text


async def test_check_and_schema(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS + "may: {alice: {run: [web]}}\n")
    async with agents(fleet, "rack1-b", "rack9-x") as hosts, fleet.owner() as owner:
        await hosts["rack1-b"].lists(["web01"])
        await owner.execute("UPDATE hosts SET target = NULL")
        found = shown(path, "check")
        assert (found["hosts"], found["unnamed"], found["absent"]) == (2, ["rack9-x"], ["rack1-a"])
        assert found["jobs"]["web"]["left_out"] == {"of a host that fleet.yaml does not name": 3}
        assert "host rack9-x: fleet.yaml does not name it" in run(path, "check").stdout
    broken = schedulers.write(fleet, JOBS.replace("web*", "web*@rack7"), "broken.yaml")
    for words in (["check"], ["check", "--offline"], ["ps"], ["scheduler"]):
        error = shown(broken, *words, check=2)["error"]
        assert error["id"] == "config.invalid"
        assert error["message"].startswith(f"{broken}:9:23: jobs.web.guests[0]: no host"), error
    assert run(path, "check", "--offline").stdout == f"{path}: nothing is wrong\n"
    assert json.loads(run(path, "schema").stdout)["required"] == ["database"]


async def test_a_person_needs_no_more_of_the_file_than_the_database(fleet: Fleet) -> None:
    role = f"{fleet.name}_alice"
    path = schedulers.write(fleet, JOBS + f"may: {{{role}: {{run: [web]}}}}\n")
    how = await fleet.add_person(role)
    own = path.with_name("own.yaml")
    own.write_text(f"database: {{dsn_file: {how.dsn_file}}}\n")
    async with agents(fleet, "rack1-a"):
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("leading")
            assert shown(own, "run", "web")["tasks"] == 2
            assert shown(own, "run", "all", check=7)["error"]["id"] == "fleet.forbidden"
            for words in ("ps", "hosts", "guests", "images", "status", "logs"):
                run(own, words)
            assert shown(own, "cancel", "1")["cancelled"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_waiting_ends_with_a_signal_and_the_run_goes_on(
    fleet: Fleet, number: signal.Signals
) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a"), fleet.owner() as owner:
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("leading")
            run(path, "run", "web")
            words = ("fleet", "wait", "1", "--fleet", str(path), "--quiet")
            with cli.started(*words) as waiting:
                await asyncio.to_thread(
                    wait.until,
                    lambda: (
                        fleet.cluster.sql(
                            "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
                            f"'mapsave command' AND datname = '{fleet.name}'"
                        )
                        == "1"
                    ),
                )
                waiting.send_signal(number)
                result = cli.ended(waiting, check=9)
            assert "what was waited for goes on [interrupted]" in result.stderr
        states = await kit.all_rows(owner, "SELECT DISTINCT status FROM procrastinate_jobs")
        assert states == [{"status": "todo"}]


async def test_a_terminal_shows_how_far_a_run_is(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a") as hosts:
        with schedulers.running(path, "one") as scheduler:
            scheduler.await_log("leading")
            run(path, "run", "web")
            args = await hosts["rack1-a"].fetch()
            assert args is not None
            assert await hosts["rack1-a"].slot(args["task"]) == "taken"
            await hosts["rack1-a"].connection.execute(
                "SELECT renew(%s, %s)",
                (args["task"], '{"phase": "ram", "done_bytes": 1048576, "total_bytes": 4194304}'),
            )
            ours, theirs = pty.openpty()
            words = [*cli.COMMAND, "fleet", "wait", "1", "--fleet", str(path)]
            env = {"PYTHONPATH": tree.PYTHONPATH, "TERM": "xterm"}
            with processes.running(
                words, env=env, stdin=theirs, stdout=theirs, stderr=theirs
            ) as waiting:
                os.close(theirs)
                shown = await asyncio.to_thread(_read_until, ours, b"ram: 1.0 MiB of 4.0 MiB")
                assert b"\x1b[H\x1b[Jrun 1 (web): 1 under way, 1 queued" in shown
                await hosts["rack1-a"].report(args["task"])
                await _ready(hosts["rack1-a"], "web02")
                shown = await asyncio.to_thread(_read_until, ours, b"1 done, 1 FAILED")
                assert b"the disk is full" in shown
                assert await asyncio.to_thread(waiting.wait, wait.LONG) == 4
            os.close(ours)


def _read_until(terminal: int, words: bytes) -> bytes:
    """Read what a terminal shows until ``words`` are in it; return all of it."""
    found = b""

    def is_there() -> bool:
        nonlocal found
        if select.select([terminal], [], [], 1.0)[0]:
            found += os.read(terminal, 65536)
        return words in found

    wait.until(is_there, what=f"{words!r} at the terminal")
    return found


async def test_watching_prints_an_object_for_each_change(fleet: Fleet) -> None:
    path = schedulers.write(fleet, JOBS)
    async with agents(fleet, "rack1-a") as hosts:
        words = ("fleet", "ps", "--watch", "--json", "--fleet", str(path))
        with cli.started(*words) as watching, schedulers.running(path, "one") as scheduler:
            assert watching.stdout is not None
            read = watching.stdout.readline
            assert json.loads(await asyncio.to_thread(read)) == {"count": 0, "tasks": []}
            scheduler.await_log("leading")
            run(path, "run", "web")
            assert json.loads(await asyncio.to_thread(read))["count"] == 2
            await hosts["rack1-a"].fetch()
            found = json.loads(await asyncio.to_thread(read))
            assert [each["status"] for each in found["tasks"]] == ["doing", "todo"]
            watching.send_signal(signal.SIGINT)
            assert cli.ended(watching).returncode in (0, 9)
