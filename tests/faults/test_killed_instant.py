"""mapsave killed in an instant restore: no image stays in use or open to others, none is lost."""

import json
import os
import shutil
import stat
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mapsave.operations import recover_restore

from tests.faults import struck
from tests.kit import cli, outcomes, patterns, processes, qemu, ram, service, wait
from tests.qemu.scene import Saved, saved


def _users(site: cli.Site) -> list[dict[str, object]]:
    (line,) = site.run("list", "--json", check=0).json()["images"]
    found: list[dict[str, object]] = line["in_use_by"]
    return found


@pytest.mark.parametrize(("where", "step", "outcome"), struck.RESTORE)
def test_killed(site: cli.Site, where: str, step: str, outcome: str) -> None:
    with saved(site, ram=patterns.sparse) as scene:
        words = ("restore", str(scene.image), "--instant", "on", "--run")
        struck.killed(site, where, step, *words)
        struck.recovered(site, outcome)
        if outcome == outcomes.UNDONE:
            assert _users(site) == []
            site.run("restore", scene.image, "--instant", "on", check=0)
        with scene.guest.successor() as guest:
            assert _users(site) == [{"guest": "web01", "pid": guest.pid}]
            if outcome != outcomes.RESTORED:  # else it runs, and changes it
                ram.assert_same(scene.ram, guest.ram)
        assert _users(site) == []


@pytest.mark.parametrize(
    ("where", "step", "outcome"),
    [
        ("after", "load", outcomes.UNDONE),
        ("before", "run", recover_restore.CLONE_LOADED),
        ("after", "run", outcomes.RESTORED),
    ],
)
def test_killed_while_it_clones(site: cli.Site, where: str, step: str, outcome: str) -> None:
    """Be the clone undone or completed, its image is not marked as restored."""
    site.add_guest("toy", emulator={"memory": "8M"}, clone={})
    with service.emulated_ended(site):
        site.run("save", "toy", "-o", "golden", check=0)
        struck.killed(site, where, step, "clone", "golden")
        struck.recovered(site, outcome)
        assert struck.states(site) == {"golden": "saved"}
        is_undone = outcome == outcomes.UNDONE
        assert [user["guest"] for user in _users(site)] == ([] if is_undone else ["toy-1"])
        done = site.run("clone", "golden", "--json", check=0).json()
        assert done["clones"][0]["guest"] == ("toy-1" if is_undone else "toy-2")
        site.run("restore", "golden", check=0)


def test_a_clone_that_is_gone_since_says_nothing_of_a_mark(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "8M"}, clone={})
    with service.emulated_ended(site):
        site.run("save", "toy", "-o", "golden", check=0)
        struck.killed(site, "after", "run", "clone", "golden")
    struck.recovered(site, recover_restore.CLONE_ENDED_SINCE)
    assert struck.states(site) == {"golden": "saved"}


def test_killed_with_several_clones_of_one_image(site: cli.Site) -> None:
    """One run recovers them all: none is kept from it by the others, which hold the image too."""
    site.add_guest("toy", emulator={"memory": "8M"}, clone={})
    with service.emulated_ended(site):
        site.run("save", "toy", "-o", "golden", check=0)
        for number in (1, 2, 3):
            words = ("clone", "golden", "--name", f"toy-{number}")
            assert struck.run(site, "after", "load", "KILL", *words).returncode < 0
        assert len(struck.journals(site)) == 3
        struck.recovered(site, *[outcomes.UNDONE] * 3)
        assert _users(site) == []


_NOBODY = 65534
_UNDER = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a QEMU as another user")


@contextmanager
def _starting(site: cli.Site) -> Iterator[tuple[Saved, subprocess.Popen[str], Path]]:
    """Begin to restore a guest of another user, up to the moment before its QEMU starts.

    Yields the guest, the command, and the FIFO from which its QEMU waits for a line.
    """
    with (
        qemu.directory_for(_NOBODY) as directory,
        saved(site, directory=directory) as scene,
        _begun(site, scene, _NOBODY) as (restoring, go),
    ):
        yield scene, restoring, go


@contextmanager
def _begun(site: cli.Site, scene: Saved, user: int) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    directory = scene.guest.directory
    directory.chmod(0o777)
    pid, go = directory / f"pid-{user}", directory / f"go-{user}"
    os.mkfifo(go)
    go.chmod(0o666)
    under = [word.replace(str(_NOBODY), str(user)) for word in _UNDER]
    script = f'echo $$ > {pid}; read line < {go}; exec "$@"'
    launch = [*under, "sh", "-c", script, "sh", *scene.guest.argv]
    site.add_guest("web01", scene.guest.qmp, launch=launch)
    with site.start("restore", str(scene.image), "--instant", "on", "--json") as restoring:
        wait.until(lambda: pid.exists() and pid.read_text(), what="the destination")
        assert _acl(scene.image)
        try:
            yield restoring, go
        finally:
            processes.end(int(pid.read_text()))


def _acl(path: Path) -> bool:
    return "system.posix_acl_access" in os.listxattr(path)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@_root
@pytest.mark.parametrize("is_another", [False, True], ids=["the image", "another file"])
def test_killed_while_another_user_may_read_the_image(site: cli.Site, is_another: bool) -> None:
    """It is taken back, but from no other file that has the image's name by now."""
    with _starting(site) as (scene, restoring, _):
        restoring.kill()
        restoring.wait(wait.LONG)
        image = scene.image
        if is_another:
            image = scene.image.rename(scene.image.with_suffix(".before"))
            shutil.copyfile(image, scene.image)
            scene.image.chmod(0o640)
    assert _acl(image)
    done = site.run("recover", "--json").json()
    assert [line["outcome"] for line in done["operations"]] == [outcomes.UNDONE]
    assert struck.journals(site) == []
    assert _acl(image) is is_another
    if is_another:
        assert "is another file now" in str(done)
        assert (_acl(scene.image), _mode(scene.image)) == (False, 0o640)
    else:
        assert _mode(image) == 0o600


@_root
def test_an_acl_that_cannot_be_taken_back(site: cli.Site) -> None:
    """The guest is restored, and recovery has another try each time."""
    with _starting(site) as (scene, restoring, go):
        with struck.immutable(scene.image):
            go.write_text("go\n")
            output, errors = restoring.communicate(timeout=wait.LONG)
            assert restoring.returncode == 0, errors
            done = json.loads(output)
            assert done["instant"] is True
            assert any("still readable" in text for text in done["warnings"])
            with scene.guest.successor() as guest:
                ram.assert_same(scene.ram, guest.ram)
                again = site.run("recover", "--json").json()
                assert "still readable" in str(again["operations"])
                assert len(struck.journals(site)) == 1
                assert guest.alive()
        assert _acl(scene.image)
        struck.recovered(site, outcomes.RESTORED)
        assert (_acl(scene.image), _mode(scene.image)) == (False, 0o600)


@_root
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
def test_killed_again_with_another_user(site: cli.Site, is_first: bool) -> None:
    """The second has found what the first had left, which is not to stay in the end."""
    with qemu.directory_for(_NOBODY) as directory, saved(site, directory=directory) as scene:
        for user in (_NOBODY, _NOBODY - 1):
            with _begun(site, scene, user) as (restoring, _):
                restoring.kill()
                restoring.wait(wait.LONG)
        older, newer = sorted(struck.journals(site), key=lambda path: path.stat().st_mtime_ns)
        moved = older if is_first else newer
        moved.rename(moved.with_name(f"restore-{uuid.UUID(int=0)}{moved.suffix}"))
        struck.recovered(site, outcomes.UNDONE, outcomes.UNDONE)
        assert (_acl(scene.image), _mode(scene.image)) == (False, 0o600)


@_root
def test_qemu_killed_while_its_user_may_read_the_image(site: cli.Site) -> None:
    with _starting(site) as (scene, restoring, _):
        processes.end(int((scene.guest.directory / f"pid-{_NOBODY}").read_text()))
        restoring.communicate(timeout=wait.LONG)
        assert restoring.returncode == 5
        assert (_acl(scene.image), _mode(scene.image)) == (False, 0o600)
        assert struck.journals(site) == []
