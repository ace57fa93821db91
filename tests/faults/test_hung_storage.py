"""Storage that hangs for real: what waits for it cannot be killed, but nothing else waits.

What could not be undone is left to ``mapsave recover``, once the storage answers.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.faults.in_time import _LIMIT, printed, waits_for_thaw
from tests.kit import cli, emulated, passthrough, patterns, qemu, service, storage, wait
from tests.qemu import scene

pytestmark = pytest.mark.root

NAME = "web01"
IMAGE = "one.mapsave"


def impatient(module: str, limit: str, seconds: float) -> list[str]:
    """Return what runs ``mapsave`` with another limit of a module of it."""
    code = (
        f"from {module} import __name__ as name; import sys; sys.modules[name].{limit} = {seconds}"
    )
    return [sys.executable, "-c", f"{code}; from mapsave.cli import start; start.command()"]


# A command that has half a second for its undoing.
SOON = impatient("mapsave.cli.interruption", "LIMIT", 0.5)


@pytest.fixture
def place(site: cli.Site, tmp_path: Path) -> Iterator[Path]:
    """A file system in user space that has the images, and can hang."""
    with passthrough.mounted(tmp_path) as place:
        site.settings["images"] = str(place)
        site.write()
        yield place


@contextlib.contextmanager
def started(
    site: cli.Site,
    hang: contextlib.AbstractContextManager[None],
    *words: str | Path,
    command: list[str] = cli.COMMAND,
) -> Iterator[subprocess.Popen[str]]:
    """Start a command whose storage hangs from before until after the body; then it ends.

    What hangs cannot be killed: so it goes on before the command is waited for, also if that fails.
    """
    with contextlib.ExitStack() as before:
        before.enter_context(hang)
        with site.start(*words, "--json", command=command) as process:
            with before.pop_all():
                yield process
            process.wait(wait.LONG)


def stopped(process: subprocess.Popen[str], hangs: Callable[[], bool]) -> dict[str, Any]:
    """Have a command end whose thread hangs; return the error that it prints in time."""
    wait.until(hangs, what="mapsave waiting for its storage")
    process.send_signal(signal.SIGTERM)
    error: dict[str, Any] = printed(process, _LIMIT)["error"]
    assert process.poll() is None
    return error


def test_fsync(site: cli.Site, place: Path) -> None:
    """The guest runs again, whatever its storage does; the partial image stays until it answers."""
    with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
        hang = passthrough.hanging(place, "fsync")
        with started(site, hang, "save", NAME, "--image", IMAGE) as process:
            error = stopped(process, lambda: passthrough.is_held(place))
            (left,) = error["data"]["left"]
            assert (left["step"], left["pid"]) == ("complete", guest.pid)
            assert "it exits when the storage answers" in error["hint"]
            assert guest.status() == "running"
        assert process.returncode == 9
        struck.recovered(site, "save rolled back")
        assert list(place.iterdir()) == []


def test_rename(site: cli.Site, place: Path) -> None:
    """The image may have its name: the guest stays paused."""
    with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
        hang = passthrough.hanging(place, "rename2")
        with started(site, hang, "save", NAME, "--image", IMAGE, command=SOON) as process:
            error = stopped(process, lambda: passthrough.is_held(place))
            (left,) = error["data"]["left"]
            assert left["step"] == "commit"
            assert guest.status() == "postmigrate"
        assert process.returncode == 9
        struck.recovered(site, "image committed")
        guest.wait()
        assert struck.states(site) == {IMAGE: "saved"}


def test_reading(site: cli.Site, place: Path) -> None:
    with emulated.guest(site, NAME):
        site.run("save", NAME, "--image", IMAGE, check=0)
    hang = passthrough.hanging(place, "read")
    with started(site, hang, "restore", IMAGE, command=SOON) as process:
        error = stopped(process, lambda: passthrough.is_held(place))
        assert not error["data"].get("left")
    assert process.returncode == 9
    assert struck.states(site) == {IMAGE: "saved"}


def test_frozen_before_the_commit(site: cli.Site, tmp_path: Path) -> None:
    with storage.loop_filesystem("ext4", 100 << 20, tmp_path) as place:
        site.settings["images"] = str(place)
        with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
            save = ("save", NAME, "--image", IMAGE, "--json")
            with struck.stopped(site, "complete", *save) as process:
                with storage.frozen(place):
                    process.send_signal(signal.SIGCONT)
                    error = stopped(process, lambda: waits_for_thaw(process.pid))
                    assert error["data"]["left"]
                assert process.wait(wait.LONG) == 9
            site.run("recover", check=0)
            guest.wait()
            assert struck.states(site)[IMAGE] == "saved"


def test_an_image_that_cannot_be_marked_in_time(site: cli.Site, tmp_path: Path) -> None:
    """Its guest does not wait longer: that it was restored is noted in the state directory."""
    with storage.loop_filesystem("ext4", 100 << 20, tmp_path) as place:
        site.settings["images"] = str(place)
        with scene.saved(site, memory="24M") as saved:
            image = place / f"{saved.guest.name}.mapsave"
            limit = impatient("mapsave.operations.restored_notes", "MARKING", 0.2)
            with started(site, storage.frozen(place), "restore", image, command=limit) as process:
                (warning,) = printed(process)["warnings"]
                assert "its storage hangs" in warning
            assert process.returncode == 0
            with saved.guest.successor() as restored:
                assert restored.status() == "prelaunch"


@pytest.mark.parametrize("words", [("save", NAME), ("restore", IMAGE), ("recover",)])
def test_the_state_directory(site: cli.Site, tmp_path: Path, words: tuple[str, ...]) -> None:
    """No guest is touched without it, and no one waits for it longer than for other storage."""
    with passthrough.mounted(tmp_path) as place:
        site.settings["state"] = str(place)
        with emulated.guest(site, NAME) as socket:
            site.run("save", NAME, "--image", IMAGE, "--then", "resume", check=0)
            soon = impatient("mapsave.blocking", "ANSWER", 0.5)
            with started(site, passthrough.hanging(place, "*"), *words, command=soon) as process:
                error = printed(process)["error"]
                assert error["id"] == "check.directory"
                assert str(place) in error["message"]
                assert "its storage hangs" in error["message"]
            assert process.returncode == 3
            assert emulated.status(socket) == "running"
            assert not list((place / "journal").iterdir())


@pytest.mark.parametrize("step", ["hand-over", "migrate", "complete"])
def test_the_state_directory_in_a_save(site: cli.Site, tmp_path: Path, step: str) -> None:
    """A step that cannot be recorded is not taken: the guest runs again, in time."""
    with passthrough.mounted(tmp_path) as place:
        site.settings["state"] = str(place)
        with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
            save = ("save", NAME, "--image", IMAGE, "--json")
            with struck.stopped(site, step, *save, answer=2.0) as process:
                with passthrough.hanging(place, "write", "fsync", "unlink"):
                    process.send_signal(signal.SIGCONT)
                    error = printed(process)["error"]
                    assert "its storage hangs" in error["message"]
                    assert guest.status() == "running"
                assert process.wait(wait.LONG) == 4
            site.run("recover", check=0)
            assert guest.status() == "running"
            assert struck.states(site) == {}


def test_the_state_directory_after_a_commit(site: cli.Site, tmp_path: Path) -> None:
    """The image is good: the guest exits, and what could not be written is a warning."""
    with passthrough.mounted(tmp_path) as place:
        site.settings["state"] = str(place)
        with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
            save = ("save", NAME, "--image", IMAGE, "--json")
            with struck.stopped(site, "commit", *save, answer=2.0) as process:
                with passthrough.hanging(place, "write", "fsync", "unlink"):
                    process.send_signal(signal.SIGCONT)
                    warnings = " ".join(printed(process)["warnings"])
                    assert "could not be recorded as where its guest is" in warnings
                    assert "cannot write the journal" in warnings
                    guest.wait()
                assert process.wait(wait.LONG) == 0
            site.run("recover", check=0)
            assert struck.states(site) == {IMAGE: "saved"}


@pytest.mark.parametrize("step", ["launch", "load"])
def test_the_state_directory_in_a_restore(site: cli.Site, tmp_path: Path, step: str) -> None:
    """The destination is ended again, and the image is as before."""
    with passthrough.mounted(tmp_path) as place:
        site.settings["state"] = str(place)
        with scene.saved(site, memory="24M") as saved:
            image = saved.image
            restore = ("restore", image, "--instant", "off", "--json")
            with struck.stopped(site, step, *restore, answer=2.0) as process:
                with passthrough.hanging(place, "write", "fsync", "unlink"):
                    process.send_signal(signal.SIGCONT)
                    error = printed(process)["error"]
                    assert "its storage hangs" in error["message"]
                assert process.wait(wait.LONG) == 5
            site.run("recover", check=0)
            saved.comes_back(site, "--instant", "off")


def test_the_service_goes_on(site: cli.Site, place: Path) -> None:
    """What hangs is cancelled, and no one else waits for it; it is recovered afterwards."""
    command = impatient("mapsave.blocking", "ANSWER", 2.0)
    with (
        emulated.guest(site, "one") as one,
        emulated.guest(site, "two") as two,
        service.running(site, command=command) as mapsaved,
    ):
        with passthrough.hanging(place, "fsync"):
            begun = [mapsaved.begin(kind="save", guest=name)["id"] for name in ("one", "two")]
            for each in begun:
                wait.until(_at_step(mapsaved, each, "complete"), what="a save that hangs")
                mapsaved.request("POST", f"/v1/operations/{each}/cancel")
            for each in begun:
                assert mapsaved.ended(each)["state"] == "cancelled"
            assert {emulated.status(path) for path in (one, two)} == {"running"}
        wait.until(lambda: not struck.journals(site), what="the recovery")
        wait.until(lambda: not list(place.iterdir()), what="the partial images being removed")
        wait.until(
            lambda: mapsaved.get("/v1/health")["status"] == "ok", what="the end of the recovery"
        )
        with passthrough.hanging(place, "*"):
            failed = mapsaved.ended(mapsaved.begin(kind="save", guest="one")["id"])
            assert failed["error"]["id"] == "check.directory"
            assert mapsaved.get("/v1/health")["status"] == "ok"
            mapsaved.begin(kind="save", guest="two")
            mapsaved.signal(signal.SIGTERM)
            mapsaved.await_log(" stopped")
        assert mapsaved.process.wait(wait.LONG) == 0


def _at_step(mapsaved: service.Service, operation: str, step: str) -> Callable[[], bool]:
    def is_there() -> bool:
        found: dict[str, Any] = mapsaved.get(f"/v1/operations/{operation}")
        return bool(found["step"] == step)

    return is_there
