"""``save-all``, ``restore-all`` where the service, or its configuration, is not well."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import unix_socket

from tests.kit import cli, emulated, service, wait

MIB = emulated.MIB
UID = 12345  # a user that exists nowhere


def test_a_service_that_hangs_is_not_waited_for(site: cli.Site) -> None:
    with emulated.guest(site, "web"), emulated.guest(site, "db"), service.running(site) as mapsaved:
        mapsaved.signal(signal.SIGSTOP)
        began = time.monotonic()
        done = site.run("save-all", "--deadline", "10m", "--json", check=0)
        assert time.monotonic() - began < 300
        mapsaved.signal(signal.SIGCONT)
    assert emulated.outcomes(done.json()) == {"web": "saved", "db": "saved"}
    assert "without it" in done.stderr
    assert emulated.committed(site) == {"web", "db"}


@contextlib.contextmanager
def closing(path: Path) -> Iterator[None]:
    """Accept connections and close them, as systemd does where the service may not be started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with unix_socket.to_connect(path) as address:
            sock.bind(address)
        sock.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_socket_without_a_service_behind_it(site: cli.Site) -> None:
    with emulated.guest(site, "web"), closing(site.socket):
        assert site.run("list", check=3).stdout == ""
        done = site.run("save-all", "--deadline", "10m", "--json", check=0).json()
    assert emulated.outcomes(done) == {"web": "saved"}


def test_all_are_restored_where_no_service_is_behind_the_socket(site: cli.Site) -> None:
    site.add_guest("web", emulator={"memory": "4M"})
    with service.emulated_ended(site):
        site.run("save", "web", "--then", "resume", check=0)  # starts it
        site.run("save-all", check=0)
        with closing(site.socket):
            done = site.run("restore-all", "--json", check=0)
    assert emulated.outcomes(done.json()) == {"web": "restored"}
    assert "without it" in done.stderr


def test_a_service_that_is_stopping_finishes_what_it_is_at(site: cli.Site) -> None:
    """And the guest that it lets run on after its save is saved again."""
    with (
        emulated.guest(site, "busy", size=16 * MIB, throttle="1600K") as busy,
        emulated.guest(site, "idle"),
        service.running(site) as mapsaved,
    ):
        mapsaved.begin(kind="save", guest="busy", save={"then": "resume"})
        wait.until(lambda: list(site.images.glob("busy*.partial")), what="the service's save")
        mapsaved.signal(signal.SIGTERM)
        mapsaved.await_log("stopping")
        done = site.run("save-all", "--deadline", "10m", "--json", check=0)
        assert not emulated.answers(busy)
        assert mapsaved.process.wait(wait.LONG) == 0
    assert emulated.outcomes(done.json()) == {"idle": "saved", "busy": "saved"}
    assert "stopping" in done.stderr
    assert len(list(site.images.glob("busy*"))) == 2


def test_a_service_that_dies_over_it(site: cli.Site) -> None:
    """What QEMU was writing is recovered, and what was not begun is saved."""
    with (
        emulated.guest(site, "slow", size=16 * MIB, throttle="2M", priority=1) as slow,
        emulated.guest(site, "next") as following,
        service.running(site) as mapsaved,
    ):
        words = ("save-all", "--deadline", "10m", "--parallel", "1", "--json")
        with site.start(*words) as process:
            wait.until(lambda: list(site.images.glob("slow*.partial")), what="the first save")
            mapsaved.kill()
            done = cli.ended(process, check=0)
        assert not emulated.answers(slow)
        assert not emulated.answers(following)
        assert not list(site.images.glob("*.partial"))
        assert "recovered: save of slow" in done.stderr
        assert done.json()["duration_s"] < 600
        planned = site.run("restore-all", "--dry-run", "--json", check=0).json()
    assert emulated.outcomes(planned) == {"slow": "planned", "next": "planned"}


def test_a_service_that_dies_over_it_and_comes_back(site: cli.Site) -> None:
    with (
        emulated.guest(site, "slow", size=16 * MIB, throttle="2M", priority=1) as slow,
        emulated.guest(site, "next") as following,
        service.running(site) as mapsaved,
        site.start("save-all", "--deadline", "15m", "--parallel", "1", "--json") as process,
    ):
        wait.until(lambda: list(site.images.glob("slow*.partial")), what="the first save")
        mapsaved.kill()
        with service.running(site):
            done = cli.ended(process, check=0)
        assert not emulated.answers(slow)
        assert not emulated.answers(following)
        planned = site.run("restore-all", "--dry-run", "--json", check=0).json()
    assert emulated.outcomes(planned) == {"slow": "planned", "next": "planned"}, done


def test_a_service_that_died_before(site: cli.Site) -> None:
    """Its guest is left in postmigrate, or about to be: without recovery no one could save it."""
    with emulated.guest(site, "web", throttle="2M") as web, service.running(site) as mapsaved:
        mapsaved.begin(kind="save", guest="web", save={"then": "resume"})
        wait.until(
            lambda: any(each.stat().st_size > 3 * MIB for each in site.images.glob("web*.partial")),
            what="pages of it",
        )
        mapsaved.kill()
        wait.until(lambda: emulated.status(web) == "postmigrate", what="QEMU's end of it")
        done = site.run("save-all", "--deadline", "10m", "--json", check=0)
        assert not emulated.answers(web)
    assert emulated.outcomes(done.json()) == {"web": "saved"}
    assert "recovered: save of web" in done.stderr


def test_told_to_stop_it_does_not_begin_anew(site: cli.Site) -> None:
    with (
        emulated.guest(site, "web", throttle="256K") as socket_of_it,
        service.running(site) as mapsaved,
    ):
        with site.start("save-all", "--deadline", "10m") as process:
            wait.until(lambda: list(site.images.glob("web*.partial")), what="the save")
            mapsaved.signal(signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
            assert process.wait(wait.LONG) == 9
        mapsaved.signal(signal.SIGCONT)
        operation = mapsaved.get("/v1/operations?kind=save-all")["operations"][0]["id"]
        mapsaved.request("POST", f"/v1/operations/{operation}/cancel")
        mapsaved.ended(operation)
        assert emulated.status(socket_of_it) == "running"


@pytest.mark.root
def test_a_wrong_configuration_leaves_the_one_in_force() -> None:
    """The service has read it when it was right; it is found at the default socket."""
    with service.reachable_site() as site:
        site.add_guest("toy", emulator={"memory": "8M"})
        place = site.directory / "run"
        (place / "mapsave").mkdir(parents=True)
        (place / "mapsave/mapsave.sock").symlink_to(site.socket)
        for path in (site.directory, site.images, site.state):
            os.chown(path, UID, UID)
        mine = [*service.as_user(UID, UID, []), *cli.COMMAND]

        def save_all(*words: str) -> cli.Result:
            homes = {"HOME": str(site.directory), "XDG_RUNTIME_DIR": str(place)}
            return site.run(*words, "save-all", "--json", command=mine, env=homes)

        with service.running(site, command=mine) as mapsaved:
            mapsaved.done(kind="save", guest="toy", save={"then": "resume"})
            site.config.write_text("images: [")
            assert save_all("--local").returncode == 2
            done = save_all()
            assert (done.returncode, emulated.outcomes(done.json())) == (0, {"toy": "saved"}), (
                done.stderr
            )
            assert "[config.invalid]" in done.stderr
            (place / "mapsave/mapsave.sock").unlink()
            assert save_all().returncode == 2
