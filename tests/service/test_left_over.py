"""What is left to recovery while the service lives, and what a service before it had under way."""

import contextlib
import os
import signal
import sys
from pathlib import Path

from tests.faults import struck
from tests.faults.slow import await_writing, looked_at, slow_guest
from tests.kit import cli, emulated, service, wait
from tests.service import interrupted
from tests.service.interrupted import IMAGE, NAME

_RESUME = {"image": IMAGE, "then": "resume"}


def _soon_weary() -> list[str]:
    """Return what runs ``mapsave`` with a monitor that has three seconds to answer."""
    code = (
        "from mapsave.monitor import session; session.COMMAND_TIMEOUT = 3.0;"
        "from mapsave.cli import start; start.command()"
    )
    return [sys.executable, "-c", code]


def _guest(site: cli.Site) -> contextlib.AbstractContextManager[Path]:
    """Run a guest that takes four seconds to save."""
    return emulated.guest(site, NAME, size=16 << 20, throttle="4M")


def _held(gate: Path) -> list[str]:
    """Return what runs a mapsave that recovers nothing until ``gate`` is there."""
    code = (
        "import asyncio, pathlib\n"
        "from mapsave.hooks import recover\n"
        "recover_now = recover.recover\n"
        "async def held(*given, **named):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        await asyncio.sleep(0.02)\n"
        "    return await recover_now(*given, **named)\n"
        "recover.recover = held\n"
        "from mapsave.cli import start\n"
        "start.command()"
    )
    return [sys.executable, "-c", code]


def test_a_service_that_has_not_looked_yet_is_not_degraded(site: cli.Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with service.running(site, command=_held(gate)) as mapsaved:
        health = mapsaved.get("/v1/health")
        assert (health["status"], health["reasons"]) == ("starting", [])
        assert not health["recovered"]
        assert site.run("ps", check=0).stderr == ""
        gate.touch()
        interrupted.await_recovery(mapsaved)
        assert mapsaved.get("/v1/health")["status"] == "ok"


def test_a_service_that_knows_of_something_to_recover_is_degraded_at_once(
    site: cli.Site, tmp_path: Path
) -> None:
    """Also where a command left it, of which the history does not know."""
    journals = site.state / "journal"
    journals.mkdir(parents=True, mode=0o700)
    (journals / "save-damaged.jsonl").write_text('{"step": "begin", "kind": "save"}\n')
    with service.running(site, command=_held(tmp_path / "gate")) as mapsaved:
        wait.until(
            lambda: mapsaved.get("/v1/health")["status"] == "degraded", what="its first look"
        )
        assert not mapsaved.get("/v1/health")["recovered"]


def test_what_a_save_leaves_is_recovered_without_being_asked(site: cli.Site) -> None:
    """QEMU does not answer amid the save, which is given up; later it does again."""
    with _guest(site) as path:
        before, pid = looked_at(path), emulated.pid(path)
        with service.running(site, command=_soon_weary()) as mapsaved:
            interrupted.await_recovery(mapsaved)
            begun = mapsaved.begin(kind="save", guest=NAME, save=_RESUME)["id"]
            await_writing(site)
            os.kill(pid, signal.SIGSTOP)
            try:
                error = mapsaved.ended(begun)["error"]
                assert "mapsave recover" in error["hint"], error
                health = mapsaved.get("/v1/health")
                assert (health["status"], health["recovered"]) == ("degraded", False)
                assert struck.journals(site)
            finally:
                os.kill(pid, signal.SIGCONT)
            interrupted.await_recovery(mapsaved)
            assert mapsaved.get("/v1/health")["status"] == "ok"
            assert looked_at(path).run_state == before.run_state == "running"
            interrupted.nothing_left(mapsaved)
            mapsaved.done(kind="save", guest=NAME, save={**_RESUME, "image": "two.mapsave"})


def test_what_qemu_still_does_for_the_service_before_counts_as_under_way(site: cli.Site) -> None:
    site.settings["service"] = {"concurrency": 1}
    with slow_guest(site), emulated.guest(site, "other"), service.running(site) as doomed:
        adopted = doomed.begin(kind="save", guest=NAME, save=_RESUME)["id"]
        await_writing(site)
        doomed.kill()
        with service.running(site) as mapsaved:
            (shown,) = mapsaved.get("/v1/operations?active=true")["operations"]
            assert (shown["id"], shown["state"]) == (adopted, "running")
            assert not mapsaved.get("/v1/operations?active=true&guest=other")["operations"]
            busy = {
                each["name"]: each["operation"] for each in mapsaved.get("/v1/guests")["guests"]
            }
            assert busy == {NAME: adopted, "other": None}
            metrics = mapsaved.request("GET", "/metrics").body.decode()
            assert 'mapsave_operations_running{kind="save"} 1.0' in metrics
            refused = mapsaved.request("POST", f"/v1/operations/{adopted}/cancel")
            assert (refused.status, refused.error) == (409, "operation.not_cancellable")
            assert "is being recovered" in refused.json()["error"]["message"]
            second = mapsaved.begin(kind="save", guest="other", save={"then": "resume"})["id"]
            assert mapsaved.get(f"/v1/operations/{second}")["state"] == "pending"
            ended = mapsaved.ended(adopted)
            assert ended["state"] == "done"
            later = mapsaved.ended(second)
            assert later["state"] == "done"
            assert later["started"] >= ended["ended"]


def test_a_guest_that_cannot_be_recovered_keeps_no_other_from_being_saved(site: cli.Site) -> None:
    site.settings["service"] = {"concurrency": 1}
    with _guest(site) as path, emulated.guest(site, "other"), service.running(site) as doomed:
        pid = emulated.pid(path)
        doomed.begin(kind="save", guest=NAME, save=_RESUME)
        await_writing(site)
        doomed.kill()
        os.kill(pid, signal.SIGSTOP)
        try:
            with service.running(site, command=_soon_weary()) as mapsaved:
                mapsaved.done(kind="save", guest="other", save={"then": "resume"})
                assert mapsaved.get("/v1/health")["recovered"] is False
                os.kill(pid, signal.SIGCONT)
                wait.until(
                    lambda: mapsaved.get("/v1/health")["recovered"], what="the end of the recovery"
                )
        finally:
            os.kill(pid, signal.SIGCONT)
