"""Managed saves: what mapsave puts where libvirt keeps its own, and libvirt restores by itself."""

import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.kit import cli, domain, patterns, ram
from tests.kit.domain import Domain
from tests.kit.libvirtd import NOBODY, Daemon
from tests.kit.outcomes import COMMITTED, LOADED, RESTORED
from tests.libvirt.scene import NAME, inside, small

PLACE = "/var/lib/libvirt/qemu/save"
IMAGE = f"{PLACE}/{NAME}.save"


def place(daemon: Daemon) -> Path:
    """Return where the daemon's managed saves are, from outside."""
    return daemon.directory / PLACE.lstrip("/")


def files(daemon: Daemon) -> list[str]:
    """Return the names of the files where libvirt keeps managed saves."""
    return sorted(path.name for path in place(daemon).iterdir())


def states(daemon: Daemon, site: cli.Site) -> dict[str, str]:
    """Return the state of each image that ``mapsave list`` shows, by its name."""
    images = site.run("list", "--json", under=inside(daemon), check=0).json()["images"]
    return {each["name"]: each["state"] for each in images}


def save(daemon: Daemon, site: cli.Site, guest: Domain, *more: str) -> dict[str, Any]:
    words = ("save", guest.address, "--managed", "--json", *more)
    return site.run(*words, under=inside(daemon), check=0).json()


def test_libvirt_restores_it_at_the_next_start(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with small(daemon, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        done = save(daemon, site, guest)
        assert (done["image"], done["managed"], done["format"]) == (IMAGE, True, "libvirt")
        assert files(daemon) == [f"{NAME}.save"]
        stats = (place(daemon) / f"{NAME}.save").stat()
        assert (stats.st_uid, stats.st_gid, stats.st_mode & 0o7777) == (0, 0, 0o600)
        assert states(daemon, site) == {IMAGE: "saved"}
        guest.virsh("start")
        assert guest.state().startswith("paused")
        ram.assert_same(before, guest.ram)
        assert files(daemon) == []
        assert states(daemon, site) == {IMAGE: "restored by libvirt"}
        guest.virsh("destroy")
        assert states(daemon, site) == {IMAGE: "restored by libvirt"}  # it was noted
        site.run("discard", IMAGE, under=inside(daemon), check=0)
        assert states(daemon, site) == {}


def test_save_all_and_what_libvirt_did_before_restore_all(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with (
        small(daemon, transient=False) as started,
        domain.running(daemon, "mine", ram=patterns.dense, transient=False) as mine,
        domain.running(daemon, "dropped", transient=False),
        domain.running(daemon, "fleeting") as fleeting,
    ):
        before = mine.snapshot_ram(tmp_path / "before")
        words = ("save-all", "--libvirt", "--uri", daemon.uri, "--json")
        done = site.run(*words, under=inside(daemon), check=0).json()
        images = {each["guest"].rpartition("#")[2]: each["image"] for each in done["guests"]}
        assert {name: os.path.dirname(path) for name, path in images.items()} == {
            NAME: PLACE,
            "mine": PLACE,
            "dropped": PLACE,
            "fleeting": str(site.images),
        }
        started.virsh("start")
        (place(daemon) / "dropped.save").unlink()
        back = site.run("restore-all", "--json", under=inside(daemon), check=0).json()
        found = {
            each["guest"].rpartition("#")[2]: (each["outcome"], each["note"])
            for each in back["guests"]
        }
        assert found == {
            NAME: ("skipped", "restored by libvirt"),
            "mine": ("restored", None),
            "dropped": ("skipped", "gone: libvirt has restored or removed its managed save"),
            "fleeting": ("restored", None),
        }
        assert not (site.state / "save-all.json").exists()
        assert not [path for path in started.open_files() if ".save" in path]
        ram.assert_same(before, mine.ram)
        assert fleeting.state().startswith("paused")
        assert files(daemon) == []
        # What is gone is no image that libvirt could take at its next start.
        mine.virsh("destroy")
        mine.virsh("start")
        assert mine.state() == "running (booted)"
        assert states(daemon, site)[f"{PLACE}/dropped.save"] == "gone"


def test_refused(daemon: Daemon, site: cli.Site) -> None:
    """With the reason, and nothing touched; one that is there is replaced only if that is said."""
    run = functools.partial(site.run, under=inside(daemon))
    with small(daemon, paused=False) as fleeting:
        refused = run("save", fleeting.address, "--managed", "--json", check=3)
        assert "is transient" in refused.error("check.refused")["message"]
        fleeting.wait_state("running")
    with small(daemon, paused=False, transient=False) as guest:
        for more in (["--then", "resume"], ["--image", "x"], ["--format", "native"]):
            run("save", guest.address, "--managed", *more, check=2)
        old = place(daemon) / f"{NAME}.save"
        old.write_bytes(b"older than the guest")
        for more, identity in (([], "check.refused"), (["--managed"], "check.image_exists")):
            error = run("save", guest.address, *more, "--json", check=3).error(identity)
            assert f"mapsave discard --yes {IMAGE}" in error["hint"]
        assert old.read_bytes() == b"older than the guest"
        guest.wait_state("running")
        old.unlink()
        run("save", guest.address, "--image", "older", "--then", "resume", check=0)
        old.write_bytes(b"older than the guest")
        save(daemon, site, guest, "--replace")
        error = run("restore", "older", "--json", check=3).error("check.refused")
        assert IMAGE in error["hint"]
        guest.wait_state("shut off")
        guest.virsh("start")
        guest.wait_state("running")
    site.add_guest("plain", qmp=site.directory / "none.qmp")
    assert "not a libvirt guest" in run("save", "plain", "--managed", check=2).stderr


def test_killed_before_it_has_its_name(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """libvirt does not take a partial image, and takes what recovery made of it."""
    with small(daemon, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        _killed(daemon, site, "after", "commit", "save", guest.address, "--managed")
        assert files(daemon) == [f"{NAME}.save.partial"]
        guest.kill()
        guest.wait_state("shut off")
        guest.virsh("start", "--paused")  # afresh
        assert files(daemon) == [f"{NAME}.save.partial"]
        guest.virsh("destroy")
        done = site.run("recover", "--json", under=inside(daemon), check=0).json()
        (line,) = done["operations"]
        assert line["outcome"].startswith(COMMITTED)
        assert states(daemon, site) == {IMAGE: "saved"}
        guest.virsh("start")
        ram.assert_same(before, guest.ram)


def test_libvirt_restored_it_before_the_recovery(daemon: Daemon, site: cli.Site) -> None:
    with small(daemon, transient=False) as guest:
        _killed(daemon, site, "after", "committed", "save", guest.address, "--managed")
        guest.kill()
        guest.wait_state("shut off")
        guest.virsh("start")
        done = site.run("recover", "--json", under=inside(daemon), check=0).json()
        (line,) = done["operations"]
        assert "libvirt" in line["outcome"]
        guest.wait_state("paused")


@pytest.mark.parametrize(
    ("step", "outcome", "left"),
    [("mark", LOADED, [f"{NAME}.save.stale"]), ("run", RESTORED, [])],
)
def test_restored_by_mapsave(
    daemon: Daemon, site: cli.Site, step: str, outcome: str, left: Sequence[str]
) -> None:
    """Whenever mapsave dies: libvirt restores no memory that is older than the disks."""
    with small(daemon, paused=False, transient=False) as guest:
        save(daemon, site, guest)
        _killed(daemon, site, "after", step, "restore", IMAGE)
        done = site.run("recover", "--json", under=inside(daemon), check=0).json()
        assert [line["outcome"] for line in done["operations"]] == [outcome]
        assert files(daemon) == left
        assert states(daemon, site) == {IMAGE: "restored"}
        guest.virsh("destroy")
        guest.virsh("start")
        guest.wait_state("running (booted)")


def test_of_a_session(session_daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """Its daemon is another user, who must be able to read it."""
    with small(session_daemon, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        done = site.run("save", guest.address, "--managed", "--json", check=0).json()
        image = session_daemon.directory / f"config/libvirt/qemu/save/{NAME}.save"
        assert done["image"] == str(image)
        assert image.stat().st_uid == NOBODY
        guest.virsh("start")
        ram.assert_same(before, guest.ram)
        assert not image.exists()


def _killed(daemon: Daemon, site: cli.Site, where: str, step: str, *words: str) -> None:
    result = site.run(*words, under=inside(daemon), command=struck.killer(where, step))
    assert result.returncode == -signal.SIGKILL, result
    assert len(struck.journals(site)) == 1
