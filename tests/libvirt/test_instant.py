"""RAM of libvirt guests that is mapped from the image, and what libvirt makes of such guests."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.kit import cli, domain, ram
from tests.kit.domain import Domain
from tests.kit.libvirtd import NOBODY, Daemon
from tests.kit.outcomes import COMMITTED, LOADED, RESTORED, UNDONE
from tests.libvirt import ways
from tests.libvirt.scene import IMAGE, small

PAGE = 4096
MAIN = "Pc.ram"  # as QEMU has it while it is mapped


def saved(guest: Domain, site: cli.Site, tmp_path: Path, *more: str) -> ram.Snapshot:
    """Save the guest, which is paused, to IMAGE; return its RAM."""
    before = guest.snapshot_ram(tmp_path / "before")
    site.run("save", guest.address, "--image", IMAGE, *more, check=0)
    guest.wait_state("shut off", domain.GONE)
    return before


def restored(guest: Domain, site: cli.Site, *more: str) -> dict[str, Any]:
    words = ("restore", IMAGE, "--guest", guest.address, "--instant", "on", "--json", *more)
    done = site.run(*words, check=0).json()
    assert done["instant"] is True
    assert [path.name for path in site.images.iterdir()] == [IMAGE]  # no link is left
    return done


@pytest.mark.parametrize(("form", "transient"), [("libvirt", False), ("native", True)])
def test_ram_is_equal(
    daemon: Daemon, site: cli.Site, tmp_path: Path, form: str, transient: bool
) -> None:
    with small(daemon, transient=transient) as guest:
        before = saved(guest, site, tmp_path, "--format", form)
        found = site.run("check", site.images / IMAGE, "--json", check=0).json()["instant"]
        assert found == {"is_possible": True, "is_used": False, "why_not": []}
        content = (site.images / IMAGE).read_bytes()[1 << 20 :]
        done = restored(guest, site)
        ram.assert_same(before.called("pc.ram", MAIN), guest.ram)
        assert str(site.images / IMAGE) in Path(f"/proc/{done['pid']}/maps").read_text()
        guest.ram.write(MAIN, 2 << 20, b"the guest's own")
        assert (site.images / IMAGE).read_bytes()[1 << 20 :] == content
        # It is in use until the guest ends.
        site.run("discard", IMAGE, "--json", check=8).error("image.in_use")
        guest.virsh("destroy")
        site.run("discard", IMAGE, check=0)
        assert transient or "Pc.ram" not in guest.xml()


def test_saved_again(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """Live, and by recovery: with names and a definition that any libvirt restores, and all RAM."""
    with small(daemon, paused=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        restored(guest, site)
        guest.ram.write(MAIN, 8 << 20, bytes(PAGE) + b"changed since")
        second = ram.snapshot(guest.ram, tmp_path / "second").called(MAIN, "pc.ram")
        site.run("save", guest.address, "-o", "live", "--live", "--then", "resume", check=0)
        struck.killed(site, "after", "complete", "save", guest.address, "-o", "recovered")
        struck.recovered(site, COMMITTED)
        guest.wait_state(domain.GONE)
        site.run("discard", IMAGE, check=0)
        for name in ("live", "recovered"):
            assert "commandline" not in site.run("inspect", "--xml", name, check=0).stdout
            daemon.virsh("restore", site.images / name, "--paused")
            ram.assert_same(second, guest.ram)
            guest.virsh("destroy")


@pytest.mark.parametrize("managed", [False, True], ids=["save", "managedsave"])
def test_what_libvirt_saves_of_it_has_no_old_pages(
    daemon: Daemon, site: cli.Site, tmp_path: Path, managed: bool
) -> None:
    """libvirt cannot restore it, and says which file it lacks; mapsave restores it as it was."""
    with small(daemon, transient=False) as guest:
        saved(guest, site, tmp_path)
        restored(guest, site)
        zeros = bytes(64 * PAGE)
        guest.ram.write(MAIN, 8 << 20, zeros)  # where the image has data
        second = guest.snapshot_ram(tmp_path / "second")
        image = site.images / "theirs"
        if managed:
            place = daemon.directory / f"var/lib/libvirt/qemu/save/{guest.name}.save"
            guest.virsh("managedsave")
            failed = guest.virsh("start", "--paused", check=False)
            place.rename(image)
        else:
            guest.virsh("save", image, "--image-format", "sparse")
            failed = daemon.virsh("restore", image, check=False)
        assert failed.returncode != 0
        assert "/.mapsave-instant-" in failed.stderr and "No such file" in failed.stderr
        if managed:  # of libvirt's own format, which only libvirt reads
            return
        through = ("restore", image, "--guest", guest.address, "--through-libvirt", "--json")
        error = site.run(*through, check=2).error()
        assert "omit --through-libvirt" in str(error["hint"])
        for how in ("off", "on"):
            words = ("restore", image, "--guest", guest.address, "--instant", how, "--again")
            site.run(*words, check=0)
            ram.assert_same(second, guest.ram)
            assert guest.ram.read(MAIN, 8 << 20, len(zeros)) == zeros
            guest.virsh("destroy")


def test_only_where_it_is_asked_for(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with small(daemon) as guest:
        before = saved(guest, site, tmp_path)
        words = ("restore", IMAGE, "--guest", guest.address, "--json", "--instant")
        through = site.run(*words, "on", "--through-libvirt", check=3).error("check.instant")
        assert "libvirt itself reads" in through["message"]
        done = site.run(*words, "auto", check=0).json()
        assert (done["instant"], "on" in done["reasons"]["instant"]) == (False, True)
        ram.assert_same(before, guest.ram)


def test_a_domain_that_cannot_be_mapped(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """It says why before anything is started; ``check`` says it as well."""
    backing = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    text = domain.definition("web01", boot=ways.halting(tmp_path), memory=24 << 20)
    text = text.replace("<vcpu>", f"{backing}<vcpu>")
    with domain.defined(daemon, text, "web01", transient=True) as guest:
        saved(guest, site, tmp_path)
        words = ("restore", IMAGE, "--guest", guest.address, "--instant", "on", "--json")
        error = site.run(*words, check=3).error("check.instant")
        assert "memfd" in error["message"] and "shared" in error["message"]
        assert guest.state() == domain.GONE
        found = site.run("check", site.images / IMAGE, "--json", check=0).json()["instant"]
        assert not found["is_possible"] and "memfd" in found["why_not"][0]


def test_a_qemu_of_another_user(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """It must be able to reach the image; the right to read it is given, and taken back."""
    label = f"<label>+{NOBODY}:+{NOBODY}</label>"
    own = f"<seclabel type='static' model='dac' relabel='yes'>{label}</seclabel></domain>"
    text = domain.definition("web01", memory=24 << 20).replace("</domain>", own)
    with domain.defined(daemon, text, "web01", transient=True) as guest:
        before = saved(guest, site, tmp_path)
        image = site.images / IMAGE
        words = ("restore", IMAGE, "--guest", guest.address, "--instant", "on", "--json")
        error = site.run(*words, check=5).error("restore.launch")
        assert (
            repr(str(site.images)) in error["message"] or str(tmp_path.parent) in error["message"]
        )
        assert "setfacl" in error["hint"] and guest.state() == domain.GONE
        for directory in image.parents:
            directory.chmod(directory.stat().st_mode | 0o001)
        mode = image.stat().st_mode
        done = restored(guest, site)
        assert Path(f"/proc/{done['pid']}").stat().st_uid == NOBODY
        ram.assert_same(before.called("pc.ram", MAIN), guest.ram)
        assert (image.stat().st_mode, os.listxattr(image)) == (mode, [])


@pytest.mark.parametrize(
    ("where", "step", "outcome"),
    [
        ("after", "link", UNDONE),
        ("before", "load", UNDONE),
        ("before", "mark", LOADED),
        ("after", "run", RESTORED),
    ],
)
def test_killed(
    daemon: Daemon, site: cli.Site, tmp_path: Path, where: str, step: str, outcome: str
) -> None:
    with small(daemon, paused=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        guest.wait_state(domain.GONE)
        restore = ("restore", IMAGE, "--guest", guest.address, "--instant", "on")
        struck.killed(site, where, step, *restore)
        if step == "link":  # which would be there a moment later
            (journal,) = struck.journals(site)
            link = json.loads(journal.read_text().splitlines()[-1])["link"]
            os.symlink(IMAGE, link)
            assert list(struck.states(site)) == [IMAGE]
        struck.recovered(site, outcome)
        assert [path.name for path in site.images.iterdir()] == [IMAGE]
        if outcome == UNDONE:
            guest.wait_state(domain.GONE)
            assert struck.states(site) == {IMAGE: "saved"}
            site.run(*restore, check=0)
        if outcome == LOADED:
            guest.virsh("resume")
        guest.wait_state("running")
        assert struck.states(site) == {IMAGE: "restored"}
        site.run("discard", IMAGE, "--json", check=8).error("image.in_use")
