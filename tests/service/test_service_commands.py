"""The commands that are about the service: ps, cancel, wait, logs; and Ctrl-C while one waits."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, emulated, service, wait

RESUME = ("--then", "resume")


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with guests that are quick, slow and not there."""
    site = cli.Site(tmp_path_factory.mktemp("commands") / "site")
    site.add_guest("gone", site.directory / "gone.qmp")
    with (
        emulated.guest(site, "db"),
        emulated.guest(site, "slow", throttle="32K"),
        service.running(site) as running,
    ):
        yield running


@pytest.fixture
def saving(mapsaved: service.Service) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that waits for a save that is writing, and the id of the operation."""
    with mapsaved.site.start("save", "slow", *RESUME, "--json") as process:

        def writing() -> Any:
            found = mapsaved.get("/v1/operations?guest=slow&state=running")["operations"]
            return found[0]["id"] if found and found[0]["step"] == "migrate" else None

        number = wait.until(writing, what="a save that is writing")
        yield process, number
        mapsaved.request("POST", f"/v1/operations/{number}/cancel")
        mapsaved.ended(number)


def _slow_runs(mapsaved: service.Service) -> bool:
    return emulated.status(emulated.socket_of(mapsaved.site, "slow")) == "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_interrupted_cancels_its_operation(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, operation = saving
    process.send_signal(number)
    process.send_signal(number)
    said = cli.ended(process, check=9).error("interrupted")["message"]
    # On a busy host the command does not wait until it is.
    assert "rolled back" in said or "has not finished yet" in said
    assert mapsaved.ended(operation)["state"] == "cancelled"
    assert _slow_runs(mapsaved)


def test_a_command_that_is_killed_leaves_its_operation(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    process, operation = saving
    process.kill()
    process.wait(10)
    assert mapsaved.get(f"/v1/operations/{operation}")["state"] == "running"


def test_ps_lists_what_is_under_way(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    _, operation = saving
    (found,) = mapsaved.site.run("ps", "--json", check=0).json()["operations"]
    assert (found["id"], found["kind"], found["guest"]) == (operation, "save", "slow")
    lines = mapsaved.site.run("ps", check=0).stdout.splitlines()
    assert lines[0].split()[0] == "operation"
    assert re.fullmatch(rf"{operation} +save +slow +running .* (prepare|write).*", lines[1])
    assert len(lines) == 2
    everything = mapsaved.site.run("ps", "--all", "--json", check=0).json()["operations"]
    assert everything[0]["id"] == operation
    assert mapsaved.site.run("ps", "--guest", "db", check=0).stdout == "no operations\n"
    (one,) = mapsaved.site.run("ps", "-a", "--limit", "1", "--json").json()["operations"]
    assert one["id"] == operation


def test_cancel_ends_an_operation_by_the_beginning_of_its_id(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    process, operation = saving
    done = mapsaved.site.run("cancel", operation[:11], "--json", check=0).json()
    assert (done["id"], done["state"]) == (operation, "cancelled")
    cli.ended(process, check=9).error("interrupted")
    assert _slow_runs(mapsaved)
    again = mapsaved.site.run("cancel", operation, check=8)
    assert "[operation.not_cancellable]" in again.stderr
    assert "[operation.unknown]" in mapsaved.site.run("cancel", "xyz", check=2).stderr
    assert "[usage]" in mapsaved.site.run("--local", "cancel", operation, check=2).stderr


def test_wait_has_the_exit_code_of_what_it_waited_for(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    _, operation = saving
    good = mapsaved.begin(kind="check", guest="db")["id"]
    bad = mapsaved.begin(kind="save", guest="gone")["id"]
    assert mapsaved.site.run("wait", good, check=0).stdout == f"operation {good} done\n"
    found = mapsaved.site.run("wait", good[:11], bad, "--json", check=3).json()["operations"]
    assert [each["state"] for each in found] == ["done", "failed"]
    with mapsaved.site.start("wait", operation) as waiting:
        assert _still_waits(waiting)
        mapsaved.site.run("cancel", operation, check=0)
        done = cli.ended(waiting, check=9)
    assert done.stdout.startswith(f"operation {operation} cancelled: ")
    assert "[operation.unknown]" in mapsaved.site.run("wait", "xyz", check=2).stderr


def _still_waits(process: subprocess.Popen[str]) -> bool:
    """Wait until the command catches SIGHUP, as it does from when it follows the operation."""

    def catches() -> bool:
        assert process.poll() is None, process.communicate()
        status = Path(f"/proc/{process.pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << signal.SIGHUP - 1)

    wait.until(catches, what="handlers of signals")
    time.sleep(0.5)
    return process.poll() is None


def test_waiting_can_be_ended_and_the_operation_goes_on(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    _, operation = saving
    with mapsaved.site.start("wait", operation) as waiting:
        assert _still_waits(waiting)
        waiting.send_signal(signal.SIGINT)
        assert "the operation continues" in cli.ended(waiting, check=9).stderr
    assert mapsaved.get(f"/v1/operations/{operation}")["state"] == "running"


def test_logs_show_the_steps_and_the_outcome(mapsaved: service.Service) -> None:
    done = mapsaved.ended(mapsaved.begin(kind="save", guest="db", save={"then": "resume"})["id"])
    lines = mapsaved.site.run("logs", done["id"][:11], check=0).stdout.splitlines()
    assert "save db, requested by user 'root'" in lines[0]
    steps = [line.split()[2] for line in lines[1:-1]]
    assert steps[0] == "begin"
    assert steps[-2:] == ["commit", "committed"]
    assert lines[-1].endswith("done")
    failed = mapsaved.ended(mapsaved.begin(kind="save", guest="gone")["id"])
    assert "[check.unreachable]" in mapsaved.site.run("logs", failed["id"], check=0).stdout
    found = mapsaved.site.run("logs", failed["id"], "--json", check=0).json()
    assert found["operation"] == failed
    assert "[operation.unknown]" in mapsaved.site.run("logs", "xyz", check=2).stderr
