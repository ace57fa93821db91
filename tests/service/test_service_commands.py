"""The commands that are about the service: guests, status, reload, ps, cancel, wait, logs, events;
and Ctrl-C while one waits."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, emulated, service, wait
from tests.pictures import read

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
        running.await_recovery()
        yield running


@pytest.fixture
def saving(mapsaved: service.Service) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that waits for a save that is writing, and the id of the operation."""
    with mapsaved.site.start("save", "slow", *RESUME, "--json") as process:

        def writing() -> Any:
            assert process.poll() is None, process.communicate()
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
    ended = mapsaved.ended(operation)
    assert ended["state"] == "cancelled", ended
    assert _slow_runs(mapsaved)


def test_a_command_that_is_killed_leaves_its_operation(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    process, operation = saving
    process.kill()
    process.wait(wait.LONG)
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


def test_logs_draw_phases_and_rate(mapsaved: service.Service, tmp_path: Path) -> None:
    """From the samples that the history has, of an operation that is over."""
    site = mapsaved.site
    done = mapsaved.ended(mapsaved.begin(kind="save", guest="db", save={"then": "resume"})["id"])
    found = site.run("logs", done["id"], "--json", check=0).json()
    phases = list(dict.fromkeys(each["phase"] for each in found["course"]))
    assert phases == list(done["result"]["phases_s"])
    last = max(found["course"], key=lambda each: each["done_bytes"])
    assert (last["phase"], last["total_bytes"] > 0) == ("write", True)
    file = tmp_path / "save.svg"
    site.run("logs", done["id"][:11], "--picture", file, check=0)
    words = read.texts(file.read_text())
    assert words[0] == f"save db ({done['id']})"
    assert set(phases) <= set(words)
    assert {"commit", "committed", "Bytes per second"} <= set(words)
    assert "[operation.unknown]" in site.run("logs", "xyz", "--picture", file, check=2).stderr


def test_guests_are_listed_with_their_state_and_last_image(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    site, (_, operation) = mapsaved.site, saving
    image = mapsaved.done(kind="save", guest="db", save={"then": "resume"})["image"]
    served = site.run("guests", "--json", check=0).json()["guests"]
    found = {each["name"]: each for each in served}
    states = [found[name]["state"] for name in ("gone", "db", "slow")]
    assert states == ["not running", "running", "busy"]
    assert found["db"]["last_image"]["image"] == image
    assert [found[name]["operation"] for name in ("db", "slow")] == [None, operation]
    alone = site.run("--local", "guests", "--json", check=0).json()["guests"]
    assert alone == [{**each, "operation": None} for each in served]
    text = site.run("guests", check=0).stdout
    assert re.search(r"^slow +busy +never ", text, re.MULTILINE)
    assert re.search(rf"^db +running .* saved +{Path(image).name}$", text, re.MULTILINE)


def test_a_guest_that_only_an_image_knows_is_listed(mapsaved: service.Service) -> None:
    site = mapsaved.site
    address = f"qmp:{emulated.socket_of(site, 'db')}"
    site.run("--local", "save", address, "-o", "by-address", "--replace", *RESUME, check=0)
    try:
        lines = site.run("guests", "--json", check=0).json()["guests"]
        assert (lines[-1]["name"], lines[-1]["kind"]) == (address, "image")
        assert lines[-1]["last_image"]["name"] == "by-address"
    finally:
        site.run("discard", "by-address", "--yes", check=0)


def test_status_says_what_runs_and_what_failed(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    bad = mapsaved.ended(mapsaved.begin(kind="save", guest="gone")["id"])
    found = mapsaved.site.run("status", "--json", check=0).json()
    assert (found["status"], found["reasons"], found["waiting"]) == ("ok", [], [])
    assert [each["id"] for each in found["running"]] == [saving[1]]
    assert found["failed"][0] == bad
    text = mapsaved.site.run("status", check=0).stdout
    assert text.startswith(f"mapsaved {found['version']}, process {mapsaved.pid}: ok, up for ")
    assert "running: 1\noperation" in text
    assert "[check.unreachable]" in text


def test_reload_reports_mistakes_and_what_needs_a_restart(mapsaved: service.Service) -> None:
    site = mapsaved.site
    job = site.add_job("nightly", guests=["db"], schedule={"cron": "0 3 * * *"})
    broken = site.jobs / "broken.yaml"
    broken.write_text("job: [")
    try:
        failed = site.run("reload", "--json", check=2).error("config.invalid")
        assert "broken.yaml" in failed["message"]
        broken.unlink()
        assert site.run("reload", check=0).stdout == "configuration reloaded\n"
        (line,) = site.run("status", "--json", check=0).json()["jobs"]
        assert line["next_run"].endswith("+00:00")
        assert re.search(r"^nightly +1 +0 3 \* \* \* ", site.run("status").stdout, re.MULTILINE)
    finally:
        broken.unlink(missing_ok=True)
        job.unlink()
        site.run("reload", check=0)


def _lines(process: subprocess.Popen[str]) -> Iterator[Any]:
    """Yield the JSON objects that a command prints, one a line."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _ends_at_ctrl_c(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert cli.ended(process, check=0).stderr == ""


def test_events_are_printed_until_ctrl_c_or_until_no_one_reads(mapsaved: service.Service) -> None:
    with (
        mapsaved.site.start("events", "--json") as process,
        mapsaved.site.start("events") as unread,
    ):
        assert unread.stdout is not None
        wait.until(lambda: _listeners(mapsaved) == 2, what="listeners")
        unread.stdout.close()
        number = mapsaved.begin(kind="check", guest="db")["id"]
        for each in _lines(process):
            if (each["data"]["id"], each["data"].get("state")) == (number, "done"):
                break
        _ends_at_ctrl_c(process)
        assert unread.wait(wait.LONG) == 0


def _listeners(mapsaved: service.Service) -> int:
    text = mapsaved.request("GET", "/metrics").body.decode()
    found = re.search(r"^mapsave_\w*listeners (\d+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def test_an_operation_is_followed_to_its_end(
    mapsaved: service.Service, saving: tuple[subprocess.Popen[str], str]
) -> None:
    site, (_, operation) = mapsaved.site, saving
    with (
        site.start("logs", "-f", operation[:11]) as log,
        site.start("events", "--operation", operation) as events,
        site.start("ps", "--watch", "--json") as watched,
    ):
        assert log.stdout is not None
        assert "save slow, requested by" in log.stdout.readline()
        assert next(_lines(watched))["operations"][0]["id"] == operation
        site.run("cancel", operation, check=0)
        assert " cancelled: " in cli.ended(log, check=0).stdout.splitlines()[-1]
        assert f"{operation} save slow cancelled" in cli.ended(events, check=0).stdout
        assert next(each for each in _lines(watched) if not each["operations"])
        _ends_at_ctrl_c(watched)
    # One that has ended already is not waited for.
    assert site.run("logs", "-f", operation, "--json", check=0).stdout.count("\n") > 1
    assert site.run("events", "--operation", operation, check=0).stdout.count("\n") == 1


def test_what_is_not_waited_for_prints_its_id(mapsaved: service.Service) -> None:
    site = mapsaved.site
    number = site.run("save", "db", *RESUME, "--no-wait", check=0).stdout.strip()
    assert site.run("wait", number, check=0).stdout == f"operation {number} done\n"
    found = site.run("restore", "nothing", "--no-wait", "--json", check=0).json()
    assert found["kind"] == "restore"
    assert "[image.not_found]" in site.run("wait", found["id"], check=2).stdout
    assert "[usage]" in site.run("--local", "save", "db", "--no-wait", check=2).stderr
