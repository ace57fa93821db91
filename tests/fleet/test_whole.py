"""Three hosts with their services and agents, and a scheduler, all of them real processes."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import hosts, schedulers
from tests.fleet.hosts import Host
from tests.kit import cli, emulated, wait
from tests.kit.fleet import Fleet

NAMES = ("rack1-a", "rack1-b", "rack2-a")
GUESTS = ("web01", "web02")
SLOW = "256K"  # bytes per second of a guest of 8 MiB: there is time to cancel
FLEET = """\
targets: {nas1: {saves: 1}, nas2: {saves: 2}}
hosts: {"rack1-*": {target: nas1}, "rack2-*": {target: nas2}}
jobs:
  nightly: {guests: ["web*"], save: {then: resume, image: "{job}-{guest}"}, timeout: 10m}
  slow: {guests: ["slow@rack2-a"], save: {then: resume}}
"""


@dataclass
class Whole:
    """The fleet that runs: where its file is, and its hosts."""

    path: Path
    hosts: dict[str, Host]

    def ask(self, *words: str, check: int | None = 0) -> dict[str, Any]:
        """Run a command of the fleet; return what it prints with --json."""
        fleet = ["fleet", *words, "--json", "--fleet", str(self.path)]
        return cli.mapsave(*fleet, check=check).json()

    def states(self, host: str) -> dict[str, str]:
        """Return the states of a host's guests, by its own service."""
        found = self.hosts[host].mapsaved.get("/v1/guests?look=true")["guests"]
        return {each["name"]: each["state"] for each in found}


@pytest.fixture
async def whole(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Whole]:
    path = schedulers.write(fleet, FLEET)
    async with contextlib.AsyncExitStack() as stack:
        scheduler = stack.enter_context(schedulers.running(path, "scheduler"))
        found = {}
        for name in NAMES:
            how = await fleet.add_host(name)
            each = stack.enter_context(hosts.host(tmp_path, name, how))
            if name == NAMES[-1]:
                stack.enter_context(emulated.guest(each.site, "slow", throttle=SLOW))
            stack.enter_context(hosts.serving(each, *GUESTS))
            stack.enter_context(hosts.agent(each))
            found[name] = each
        scheduler.await_log("leading")
        running = Whole(path, found)
        wait.until(lambda: _running(running) == 7, what="what the agents report")
        yield running


def _running(whole: Whole) -> int:
    """Return how many guests run on hosts that have a target, as far as the fleet knows."""
    found = whole.ask("guests")["guests"]
    targets = [each["target"] for each in whole.ask("hosts")["hosts"]]
    return sum(each["facts"]["state"] == "running" for each in found) if None not in targets else 0


async def test_a_fleet(whole: Whole) -> None:
    """One for all that needs three hosts, which take longer to start than what is tested."""
    assert_a_run_saves_each_guest_once(whole)
    assert_a_host_is_evacuated_and_returned(whole)
    assert_a_save_that_runs_is_cancelled_from_afar(whole)


def assert_a_run_saves_each_guest_once(whole: Whole) -> None:
    done = whole.ask("run", "nightly", "--wait")
    assert (done["tasks"], done["counts"]) == (6, {"succeeded": 6})
    for host in whole.hosts.values():
        assert {"nightly-web01", "nightly-web02"} <= set(host.images())
        assert len(host.operations()) == 2
    states = {each["state"] for each in whole.ask("hosts")["hosts"]}
    assert states == {"ok"}


def assert_a_host_is_evacuated_and_returned(whole: Whole) -> None:
    done = whole.ask("evacuate", "rack1-a", "--wait")
    assert (done["tasks"], done["counts"]) == (2, {"succeeded": 2})
    assert set(whole.states("rack1-a").values()) == {"not running"}
    assert set(whole.states("rack1-b").values()) == {"running"}
    wait.until(lambda: _running(whole) == 5, what="the report of the evacuation")
    assert whole.ask("run", "nightly", "--wait", check=3)["left_out"] == 2  # those images exist

    done = whole.ask("return", "rack1-a", "--wait")
    assert (done["tasks"], done["counts"]) == (2, {"succeeded": 2})
    assert set(whole.states("rack1-a").values()) == {"running"}
    assert len(whole.hosts["rack1-a"].operations("restore")) == 2
    assert whole.ask("return", "rack1-a")["tasks"] == 0
    (task,) = whole.ask("ps", "--all", "--run", "4", "--limit", "1")["tasks"]
    steps = whole.ask("logs", task["task"])["task"]["outcome"]["steps"]
    assert "mark" in {each["step"] for each in steps}


def assert_a_save_that_runs_is_cancelled_from_afar(whole: Whole) -> None:
    host = whole.hosts["rack2-a"]
    before = host.images()
    run = whole.ask("run", "slow")["run"]

    def saves() -> bool:
        (task,) = whole.ask("ps", "--run", str(run))["tasks"]
        answer = host.mapsaved.request("GET", f"/v1/operations/{task['task']}")
        return answer.status == 200 and answer.json()["step"] == "migrate"

    wait.until(saves, what="the save")
    (task,) = whole.ask("ps")["tasks"]
    assert whole.ask("cancel", task["task"])["asked"] == 1
    (found,) = whole.ask("wait", task["task"], check=9)["tasks"]
    assert found["status"] == "aborted"
    assert host.images() == before
    assert set(whole.states("rack2-a").values()) == {"running"}
    assert whole.ask("wait", str(run), check=9)["runs"][0]["counts"] == {"aborted": 1}
