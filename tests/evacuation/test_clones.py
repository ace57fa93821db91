"""Clones of emulated guests: names, reports, who else sees them, and what is undone."""

import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mapsave import blocking, config, errors
from mapsave.cli import clone
from mapsave.evacuation import clones, record, restore_targets
from mapsave.image import image as opening
from mapsave.operations import guard, locks

from tests.kit import cli, emulated, processes, service, wait


@contextmanager
def _saved(site: cli.Site, **more: Any) -> Iterator[None]:
    """Save the emulated guest 'toy' to the image 'golden'; what was started is ended."""
    site.add_guest("toy", emulator={"memory": "8M"}, **{"clone": {}, **more})
    with service.emulated_ended(site):
        site.run("save", "toy", "-o", "golden", check=0)
        yield


def _clones(done: dict[str, Any]) -> dict[str, str]:
    return {each["guest"]: each["outcome"] for each in done["clones"]}


def _socket(site: cli.Site, name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return site.state / "emulated" / f"{digest}.qmp"


def _maps(result: dict[str, Any], image: Path) -> bool:
    return str(image) in Path(f"/proc/{result['pid']}/maps").read_text()


def _states(site: cli.Site) -> dict[str, str]:
    """Return the states of the guests that are not of the libvirt of this host."""
    shown = site.run("guests", "--json", check=0).json()["guests"]
    return {each["name"]: each["state"] for each in shown if each["kind"] == "emulator"}


@pytest.mark.parametrize("names", [(), ("toy-1",)], ids=["to be found", "given"])
async def test_names_are_not_looked_at_without_a_limit(
    site: cli.Site, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Where the storage of images hangs."""
    may_end, template = threading.Event(), clones._template

    def then_it_hangs(*arguments: Any) -> Any:
        found = template(*arguments)
        monkeypatch.setattr(blocking, "ANSWER", 0.05)
        return found

    async def restorer(*_: Any) -> Any:
        pytest.fail("nothing is to be started")

    async def error() -> str:
        known = config.load(site.config, {})
        try:
            done = await clones.clone(known, clones.Request("golden", names=names), restorer)
        except errors.BadDirectory as error:
            return error.message
        return str(done["clones"][0]["error"])

    with _saved(site):
        monkeypatch.setattr(clones, "_template", then_it_hangs)
        monkeypatch.setattr(guard, "check", lambda *_: may_end.wait())
        try:
            assert f"{site.images}' gives no answer" in await error()
        finally:
            may_end.set()


def test_clones_are_guests(site: cli.Site, tmp_path: Path) -> None:
    """They map the image, which stays as it is; they are saved under their own names."""
    with _saved(site):
        words = site.run("clone", "golden", "--count", "2", check=0).stdout
        assert "clone: 2 cloned from" in words
        done = site.run("clone", "golden", "--name", "toy-extra", "--json", check=0).json()
        assert _clones(done) == {"toy-extra": "cloned"}
        (line,) = done["clones"]
        assert line["result"]["instant"] is True
        assert _maps(line["result"], site.images / "golden")
        listed = site.run("list", "--json", check=0).json()["images"][0]
        assert listed["state"] == "saved"
        users = sorted(each["guest"] for each in listed["in_use_by"])
        assert users == ["toy-1", "toy-2", "toy-extra"]

        assert _states(site) == {
            "toy": "not running",
            "toy-1": "running",
            "toy-2": "running",
            "toy-extra": "running",
        }
        before = emulated.ram_of(_socket(site, "toy-2"), tmp_path / "ram")
        assert before == emulated.ram_of(_socket(site, "toy-1"), tmp_path / "ram")
        saved = site.run("save", "toy-2", "-o", "second", "--json", check=0).json()
        assert saved["guest"] == "toy-2"
        # The number of a guest that is in an image is not free.
        more = site.run("clone", "golden", "--count", "2", "--json", check=0).json()
        assert list(_clones(more)) == ["toy-3", "toy-4"]
        site.run("restore", "second", check=0)
        assert emulated.ram_of(_socket(site, "toy-2"), tmp_path / "ram") == before
        # A clone of a clone is a clone of the same guest.
        more = site.run("clone", "second", "--again", "--json", check=0).json()
        assert (more["clone_of"], list(_clones(more))) == ("toy", ["toy-5"])


def test_warnings_are_told_once(site: cli.Site) -> None:
    with _saved(site):
        done = site.run("clone", "golden", "--count", "2", "--json", check=0).json()
    for each in done["clones"]:
        each["result"]["warnings"] = ["the disks have changed", each["guest"]]
    lines = clone.text(done).splitlines()
    words = ("the disks have changed", "toy-1", "toy-2")
    assert lines[-3:] == [f"warning: {each}" for each in words]


def test_the_original_is_restored_beside(site: cli.Site) -> None:
    """Once; after that its disks are newer, for clones too."""
    with _saved(site):
        site.run("clone", "golden", "--count", "1", check=0)
        site.run("restore", "golden", check=0)
        error = site.run("clone", "golden", "--count", "1", "--json", check=3).error()
        assert error["id"] == "check.already_restored"
        site.run("clone", "golden", "--count", "1", "--again", check=0)


def test_one_that_fails_prevents_no_other(site: cli.Site) -> None:
    with _saved(site):
        site.run("clone", "golden", "--name", "toy-2", check=0)
        names = [word for name in ("toy-1", "toy-2", "toy-3") for word in ("--name", name)]
        found = site.run("clone", "golden", *names, "--json", check=8)
        done = found.json()
        assert _clones(done) == {"toy-1": "cloned", "toy-2": "failed", "toy-3": "cloned"}
        assert (done["cloned"], done["failed"], done["exit_code"]) == (2, 1, 8)
        assert "already running" in done["clones"][1]["error"]["message"]
        assert "toy-2" in (text := site.run("clone", "golden", *names, check=8).stdout)
        assert "FAILED" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--count", "1", "--name", "toy-1"], 2, "or their names, not both"),
        (["--count", "0"], 2, "--count"),
        (["--name", "toy"], 2, "cannot be a clone of guest 'toy': their names are 'toy-{n}'"),
        (["--name", "toy-a,b"], 2, "cannot be a clone"),
        (["--name", "toy-1", "--name", "toy-1"], 2, "is given 2 times"),
        (["--count", "1", "--guest", "plain"], 3, "how clones of guest 'plain' are started"),
        (["--count", "1", "--guest", "missing"], 2, "no guest 'missing'"),
    ],
)
def test_refused_before_anything_is_started(
    refusing: cli.Site, words: list[str], code: int, said: str
) -> None:
    refused = refusing.run("clone", "golden", *words, check=code)
    assert said in refused.stderr
    assert not list((refusing.state / "in-use").glob("*"))


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cli.Site]:
    site = cli.Site(tmp_path_factory.mktemp("refusing"))
    site.add_guest("plain", emulator={"memory": "8M"})
    with _saved(site):
        yield site


def test_all_guests_means_clones_too(site: cli.Site) -> None:
    """Those that run are saved before the host goes down, and come back as what they were."""
    with _saved(site):
        site.run("clone", "golden", "--count", "2", check=0)
        done = site.run("save-all", "toy-*", "--json", check=0).json()
        assert emulated.outcomes(done) == {"toy-1": "saved", "toy-2": "saved"}
        back = site.run("restore-all", "--json", check=0).json()
        assert emulated.outcomes(back) == {"toy-1": "restored", "toy-2": "restored"}
        assert emulated.status(_socket(site, "toy-2")) == "running"


def test_interrupted(site: cli.Site) -> None:
    """What is under way is undone; the clones that run are named, and stay."""
    with _saved(site):
        go = site.directory / "go"
        script = f'[ "$MAPSAVE_GUEST" = toy-1 ] || until [ -e {go} ]; do sleep 0.05; done'
        site.add_hook("wait", script, "before_restore")
        with site.start("clone", "golden", "--count", "3", "--json") as process:
            wait.until(lambda: emulated.answers(_socket(site, "toy-1")), what="the first clone")
            wait.until(lambda: _states(site).get("toy-1") == "running", what="the first guest")
            process.send_signal(signal.SIGINT)
            ended = cli.ended(process, check=9)
        error = ended.error()
        assert error["data"]["cloned"] == ["toy-1"]
        assert "toy-1" in error["message"]
        (user,) = site.run("list", "--json", check=0).json()["images"][0]["in_use_by"]
        assert user["guest"] == "toy-1"
        assert not emulated.answers(_socket(site, "toy-2"))
        assert site.run("recover", "--json", check=0).json()["operations"] == []


def test_hooks_know_a_clone(site: cli.Site) -> None:
    """They set its clock and its identity: of a guest that is restored nothing is changed."""
    with _saved(site):
        seen = site.directory / "seen"
        script = f'echo "$MAPSAVE_GUEST:$MAPSAVE_CLONE_OF:$MAPSAVE_SOCKET" >> {seen}'
        site.add_hook("note", script, "after_restore")
        site.run("clone", "golden", "--count", "1", check=0)
        site.run("restore", "golden", check=0)
        lines = seen.read_text().splitlines()
        assert lines[0] == f"toy-1:toy:{_socket(site, 'toy-1')}"
        assert lines[1].startswith("toy::")


def test_a_command_line_of_its_own(site: cli.Site) -> None:
    """Of a guest of QEMU ``clone`` has one, in which ``{name}`` and ``{n}`` are replaced."""
    site.settings["launch_environment"] = ["PATH", processes.MARK, "PYTHONPATH"]
    with emulated.guest(site, "web") as socket:
        site.run("save", "web", "-o", "golden", check=0)
        launch = [
            word.replace(str(socket), f"{site.directory}/{{name}}.qmp")
            for word in site.guests["web"]["launch"]
        ]
        launch[launch.index("--name") + 1] = "clone-{n:03d}-of-{name}"
        site.guests["web"]["clone"] = {
            "name": "runner-{n}",
            "qmp": str(site.directory / "{name}.qmp"),
            "launch": launch,
        }
        site.write()
        done = site.run("clone", "golden", "--count", "2", "--json", check=0).json()
        try:
            assert _clones(done) == {"runner-1": "cloned", "runner-2": "cloned"}
            pid = emulated.pid(site.directory / "runner-2.qmp")
            assert "clone-002-of-runner-2" in Path(f"/proc/{pid}/cmdline").read_text()
            error = site.run("clone", "golden", "--name", "runner-x", "--json", check=2).error()
            assert "'runner-{n}', a number" in error["message"]
        finally:
            for name in ("runner-1", "runner-2"):
                emulated.end(site.directory / f"{name}.qmp")


def test_restore_all_waits_for_clones_that_start(site: cli.Site) -> None:
    """They share the image's lock, for longer than a few tries of restore-all take."""
    with _saved(site):
        path = str(site.images / "golden")
        with opening.opened(path) as opened:
            key = locks.image_key(opened.block.uuid)
        found, entry = config.load(site.config, {}), record.Entry(guest="toy", image=path, ran=True)
        assert not restore_targets.is_locked(found, entry)
        with locks.held(site.state, "the image", key, shared=True):
            assert restore_targets.is_locked(found, entry)


def test_a_clone_that_maps_nothing_is_seen(site: cli.Site) -> None:
    """Its image was read into its memory: it is as much a guest that runs as any other."""
    with _saved(site):
        site.run("clone", "golden", "--count", "1", check=0)
        site.run("save", "toy-1", "-o", "own", check=0)
        site.run("restore", "own", "--instant", "off", check=0)
        assert _states(site) == {"toy": "not running", "toy-1": "running"}
        done = site.run("save-all", "--json", check=0).json()
        assert emulated.outcomes(done)["toy-1"] == "saved"
        assert _states(site) == {"toy": "not running"}


def test_a_clone_that_cannot_be_saved_is_not_passed_over(site: cli.Site) -> None:
    """Of one that no template names, or where notes cannot be read, save-all has a failed line."""
    with _saved(site, clone={}):
        site.run("clone", "golden", "--count", "1", check=0)
        site.guests["toy"]["clone"] = {"name": "other-{n}"}
        site.write()
        done = site.run("save-all", "--json", check=2).json()
        line = next(each for each in done["guests"] if each["guest"] == "toy-1")
        assert "no 'clone:' of the configuration says so" in line["error"]["message"]
        assert str(_socket(site, "toy-1")) in line["error"]["hint"]
        assert "'toy-1' runs" in site.run("guests", check=0).stdout
        del site.guests["toy"]["clone"]
        site.write()
        for word in ("toy*", "toy-1"):
            assert site.run("save-all", word, "--json", check=2).json()["failed"] == 1
        (note,) = (site.state / "clones").glob("*.json")
        note.write_text("damaged")
        done = site.run("save-all", "--json", check=3).json()
        assert any(str(note) in (each["error"] or {}).get("message", "") for each in done["guests"])
        site.guests["toy"]["clone"] = {}
        site.write()  # so that it is found, and ended
