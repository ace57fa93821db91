"""The service's life: started, read again, stopped; and what it tells systemd in the meantime."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import yaml
from mapsave.history import history

from tests.faults import struck
from tests.kit import cli, emulated, qmp, service, state, wait
from tests.kit.service import Service
from tests.service.datagrams import receiver, told

IMAGE = "one.mapsave"


def _inode(site: cli.Site) -> int:
    return site.socket.lstat().st_ino


def _refused(site: cli.Site, code: int, *options: str) -> dict[str, Any]:
    """Return the error with which a service does not start."""
    found: dict[str, Any] = site.run("serve", "--json", *options, check=code).json()["error"]
    return found


def _write_job(site: cli.Site, name: str, **content: Any) -> None:
    site.write()
    site.add_job(name, **{"guests": ["db"], **content})


def _await_pages(mapsaved: Service, operation: str) -> None:
    """Wait until a save has begun to write pages."""

    def writes() -> bool:
        progress = mapsaved.get(f"/v1/operations/{operation}")["progress"]
        return bool(progress and progress["phase"] == "write" and progress["done_bytes"])

    wait.until(writes, what="pages that are written")


def _find_save(mapsaved: Service, guest: str) -> str:
    def begun() -> str | None:
        found = mapsaved.get(f"/v1/operations?kind=save&guest={guest}")["operations"]
        return str(found[0]["id"]) if found else None

    return wait.until(begun, what="a save")


def _state_of(monitor: os.PathLike[str]) -> state.State:
    with qmp.connect(monitor) as client:  # type: ignore[arg-type]
        return state.of(client)


def test_a_second_service_is_refused_and_the_first_unharmed(site: cli.Site) -> None:
    with service.running(site) as mapsaved:
        inode = _inode(site)
        assert _refused(site, 8)["id"] == "service.running"
        other = site.directory / "other.yaml"
        other.write_text(
            yaml.safe_dump(
                {
                    "images": str(site.images),
                    "state": str(site.directory / "other"),
                    "socket": str(site.socket),
                }
            )
        )
        second = cli.mapsave("--config", other, "serve", "--json", check=8)
        assert second.json()["error"]["id"] == "service.running"
        assert mapsaved.get("/v1/health")["pid"] == mapsaved.pid
        assert _inode(site) == inode
        assert mapsaved.stop() == 0
    assert not site.socket.exists()


def test_the_socket_of_one_that_was_killed_is_replaced(site: cli.Site) -> None:
    with service.running(site) as doomed:
        doomed.kill()
        with pytest.raises(ConnectionRefusedError):
            service.connect(site.socket)
        with service.running(site) as mapsaved:
            assert mapsaved.get("/v1/health")["pid"] == mapsaved.pid


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays_where_it_is(site: cli.Site, kind: str) -> None:
    if kind == "file":
        site.socket.write_text("precious")
    elif kind == "directory":
        site.socket.mkdir()
    else:
        site.socket.symlink_to("elsewhere")
    error = _refused(site, 2)
    assert str(site.socket) in error["message"]
    assert error["hint"]
    assert (kind == "link") == site.socket.is_symlink()
    assert kind != "file" or site.socket.read_text() == "precious"
    assert kind != "directory" or site.socket.is_dir()


@pytest.mark.parametrize("key", ["operators", "readers"])
def test_an_unknown_group_is_named(site: cli.Site, key: str) -> None:
    site.settings["service"] = {key: ["no-such"]}
    site.write()
    error = _refused(site, 2)
    assert f"service.{key}" in error["message"]
    assert "'no-such'" in error["message"]
    assert not site.socket.exists()


def test_sighup_takes_over_guests_limits_and_jobs(site: cli.Site) -> None:
    with emulated.guest(site, "db", throttle="64K"), emulated.guest(site, "web", throttle="64K"):
        guests = dict(site.guests)
        del site.guests["web"]
        site.settings["service"] = {"concurrency": 1}
        site.write()
        with service.running(site) as mapsaved:
            assert [each["name"] for each in mapsaved.get("/v1/guests")["guests"]] == ["db"]
            site.guests = guests
            site.settings["service"] = {"concurrency": 2}
            _write_job(site, "nightly", schedule="0 3 * * *")
            mapsaved.signal(signal.SIGHUP)
            mapsaved.await_log("configuration reloaded")
            assert len(mapsaved.get("/v1/guests")["guests"]) == 2
            (job,) = mapsaved.get("/v1/jobs")["jobs"]
            assert (job["name"], job["next_run"] is not None) == ("nightly", True)
            begun = [mapsaved.begin(kind="save", guest=guest)["id"] for guest in guests]
            for each in begun:  # both write: with the old limit the second one would wait
                _await_pages(mapsaved, each)
            for each in begun:
                mapsaved.request("POST", f"/v1/operations/{each}/cancel")
                assert mapsaved.ended(each)["state"] == "cancelled"


def test_what_needs_a_restart_is_told_and_stays_as_it_was(site: cli.Site) -> None:
    with service.running(site) as mapsaved:
        site.settings["state"] = str(site.directory / "elsewhere")
        site.settings["service"] = {"log": "json", "concurrency": 7}
        site.write()
        for _ in range(2):  # it is told until the restart
            answer = mapsaved.request("POST", "/v1/reload")
            assert answer.json() == {"needs_restart": ["state", "service.log"]}
        assert mapsaved.get("/v1/health")["state"] == str(site.state)
        mapsaved.done(kind="recover")
        assert not (site.directory / "elsewhere").exists()


@pytest.mark.parametrize("broken", ["syntax", "group", "job", "gone"])
def test_a_broken_configuration_leaves_the_old_one_in_force(site: cli.Site, broken: str) -> None:
    site.add_guest("db", site.directory / "db.qmp")
    _write_job(site, "nightly", schedule="0 3 * * *")
    notify = site.directory / "notify"
    with (
        receiver(str(notify)) as systemd,
        service.running(site, env={"NOTIFY_SOCKET": str(notify)}) as mapsaved,
    ):
        mapsaved.await_recovery()
        site.add_guest("new", site.directory / "new.qmp")
        words = str(site.config)
        if broken == "syntax":
            site.config.write_text(site.config.read_text() + "guest: [")
        elif broken == "group":
            site.settings["service"] = {"operators": ["no-such"]}
            site.write()
            words = "no group 'no-such'"
        elif broken == "job":
            _write_job(site, "weekly", guests=["nobody"])
            words = "weekly.yaml"
        else:
            site.config.unlink()
        mapsaved.signal(signal.SIGHUP)
        mapsaved.await_log("the old configuration remains in use")
        assert words in mapsaved.logged()
        answer = mapsaved.request("POST", "/v1/reload")
        assert (answer.status, words in answer.json()["error"]["message"]) == (400, True)
        assert [each["name"] for each in mapsaved.get("/v1/guests")["guests"]] == ["db"]
        assert [each["name"] for each in mapsaved.get("/v1/jobs")["jobs"]] == ["nightly"]
        assert mapsaved.get("/v1/health")["status"] == "ok"
        heard = told(systemd)
        reloading = next(at for at, each in enumerate(heard) if each.startswith("RELOADING=1"))
        assert heard[reloading + 1].startswith("STATUS=the old configuration remains in use: ")
        assert heard[reloading + 2] == "READY=1"


@contextlib.contextmanager
def _heard(place: Path) -> Iterator[list[str]]:
    """Listen as systemd does, and yield what it is told; whole when this ends.

    All the time, for the kernel queues only a few datagrams (net.unix.max_dgram_qlen).
    """
    heard: list[str] = []
    over = threading.Event()
    with receiver(str(place)) as systemd:

        def listen() -> None:
            while not over.wait(0.02):
                heard.extend(told(systemd))

        with futures.ThreadPoolExecutor(1) as threads:
            listening = threads.submit(listen)
            try:
                yield heard
            finally:
                over.set()
                listening.result()
                heard.extend(told(systemd))


@contextlib.contextmanager
def _saving(
    site: cli.Site, *options: str, throttle: str = "32K", **how: Any
) -> Iterator[tuple[Service, Any]]:
    """Run a service that saves a slow guest for a command, and has another save wait for it.

    By ``throttle`` it takes seconds; it is minutes where the save is not to be waited for.
    """
    site.settings.setdefault("service", {})["concurrency"] = 1
    site.write()
    with (
        emulated.guest(site, "slow", throttle=throttle),
        emulated.guest(site, "other"),
        service.running(site, **how) as mapsaved,
        site.start("save", "slow", "--image", IMAGE, "--json", *options) as waiting,
    ):
        _await_pages(mapsaved, _find_save(mapsaved, "slow"))
        yield mapsaved, waiting


def test_sigterm_finishes_what_runs_and_cancels_what_waits(site: cli.Site) -> None:
    notify = site.directory / "notify"
    env = {"NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": "2000000"}
    saving = _saving(site, "--then", "resume", throttle="1M", env=env)
    with _heard(notify) as heard, saving as (mapsaved, waiting):
        waits = mapsaved.begin(kind="save", guest="other")["id"]
        assert mapsaved.get(f"/v1/operations/{waits}")["state"] == "pending"
        mapsaved.signal(signal.SIGTERM)
        mapsaved.await_log("stopping")
        refused = mapsaved.begin(503, kind="save", guest="other")
        assert refused["error"]["id"] == "service.stopping"
        cancelled = mapsaved.ended(waits)
        assert (cancelled["state"], cancelled["error"]["id"]) == ("cancelled", "interrupted")
        assert mapsaved.get("/v1/health")["operations"] == 1
        # Neither may end it now: a save is under way.
        mapsaved.signal(signal.SIGTERM)
        mapsaved.signal(signal.SIGHUP)
        assert mapsaved.process.wait(wait.LONG) == 0
        assert cli.ended(waiting, check=0).json()["image"] == str(site.images / IMAGE)
        assert not site.socket.exists()
        assert emulated.status(emulated.socket_of(site, "slow")) == "running"
        site.run("verify", IMAGE, check=0)
    assert heard.index("READY=1") < heard.index("STOPPING=1")
    assert any(each.startswith("EXTEND_TIMEOUT_USEC=") for each in heard)
    assert heard.count("WATCHDOG=1") >= 2
    assert "STATUS=stopping: running saves are finished" in heard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_on_stop_cancel_puts_the_guest_back(site: cli.Site, number: signal.Signals) -> None:
    site.settings["service"] = {"on_stop": "cancel"}
    with emulated.guest(site, "probe") as probe:
        fresh = _state_of(probe)
    del site.guests["probe"]
    with _saving(site) as (mapsaved, waiting):
        mapsaved.signal(number)
        mapsaved.signal(number)
        assert mapsaved.process.wait(wait.LONG) == 0
        cli.ended(waiting, check=9).error("interrupted")
        state.assert_left_as_found(fresh, _state_of(emulated.socket_of(site, "slow")))
        assert not list(site.images.iterdir())
        assert not struck.journals(site)
        assert not site.socket.exists()
        with service.running(site) as again:
            operation = again.get("/v1/operations?guest=slow")["operations"][0]
            assert operation["state"] == "cancelled"


def test_a_reload_decides_how_it_stops(site: cli.Site) -> None:
    with _saving(site) as (mapsaved, waiting):
        site.settings["service"]["on_stop"] = "cancel"
        site.write()
        assert mapsaved.request("POST", "/v1/reload").json() == {"needs_restart": []}
        assert mapsaved.stop() == 0
        assert waiting.wait(wait.LONG) == 9


def test_idle_it_stops_at_once(site: cli.Site) -> None:
    with service.running(site) as mapsaved:
        with service.connect(site.socket) as listener:
            listener.sendall(b"GET /v1/events HTTP/1.1\r\nHost: mapsaved\r\n\r\n")
            assert listener.recv(1000).startswith(b"HTTP/1.1 200")
            assert mapsaved.stop() == 0
        assert not site.socket.exists()


_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_a_socket_that_systemd_holds_is_served_and_left(site: cli.Site) -> None:
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(site.socket))
        held.listen()
        command = [sys.executable, "-c", _AS_SYSTEMD, str(held.fileno())]
        command += ["-m", "mapsave"]
        with service.running(site, command=command, pass_fds=[held.fileno()]) as mapsaved:
            assert mapsaved.get("/v1/health")["pid"] == mapsaved.pid
            assert mapsaved.stop() == 0
        assert site.socket.exists()
        # Whoever comes between two runs waits, and is served by the next.
        with service.connect(site.socket) as early:
            early.sendall(b"GET /v1/health HTTP/1.0\r\n\r\n")
            with service.running(site, command=command, pass_fds=[held.fileno()]):
                assert early.recv(1000).startswith(b"HTTP/1.0 200")


def test_a_broken_job_is_told_and_the_others_run(site: cli.Site) -> None:
    with emulated.guest(site, "db"):
        _write_job(site, "good", save={"then": "resume"})
        _write_job(site, "bad", schedule="61 * * * *")
        _write_job(site, "stray", guests=["nobody"])
        with service.running(site) as mapsaved:
            found = mapsaved.get("/v1/jobs")
            assert [each["name"] for each in found["jobs"]] == ["good"]
            files = [os.path.basename(each["file"]) for each in found["broken"]]
            assert files == ["bad.yaml", "stray.yaml"]
            health = mapsaved.get("/v1/health")
            assert (health["status"], len(health["broken_jobs"])) == ("degraded", 2)
            assert "61" in health["broken_jobs"][0]["error"]["message"]
            assert mapsaved.done(kind="job", job="good")["saved"] == 1
            assert mapsaved.begin(400, kind="job", job="bad")["error"]["id"] == "config.invalid"
            # What was broken before keeps nothing from changing.
            _write_job(site, "new", save={"then": "resume"})
            assert mapsaved.request("POST", "/v1/reload").status == 200
            assert [each["name"] for each in mapsaved.get("/v1/jobs")["jobs"]] == ["good", "new"]


@pytest.mark.parametrize("persistent", [True, False])
def test_a_run_that_was_missed_comes_at_the_start(site: cli.Site, persistent: bool) -> None:
    async def ran(when: float) -> None:
        async with history.opened(site.state / "journal.db") as kept:
            await kept.ran("yearly", when)

    schedule = {"cron": "0 0 1 1 *", "persistent": persistent}
    with emulated.guest(site, "db"):
        _write_job(site, "yearly", schedule=schedule, save={"then": "resume"})
        asyncio.run(ran(time.time() - 2 * 366 * 86400))
        with service.running(site) as mapsaved:
            if not persistent:
                mapsaved.done(kind="recover")
                assert not mapsaved.get("/v1/operations?kind=job")["operations"]
                return
            (run,) = wait.until(
                lambda: mapsaved.get("/v1/operations?kind=job")["operations"], what="the job"
            )
            assert mapsaved.ended(run["id"])["result"]["saved"] == 1
        with service.running(site) as mapsaved:  # once
            mapsaved.done(kind="recover")
            assert len(mapsaved.get("/v1/operations?kind=job")["operations"]) == 1
