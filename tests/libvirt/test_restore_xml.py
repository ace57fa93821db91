"""``restore --xml``: another definition than the image's, and definitions that are none."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, domain, patterns, ram, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

TITLE = "<title>another &amp; &lt;é&gt;</title>"


@pytest.fixture
def guest(daemon: Daemon, tmp_path: Path) -> Iterator[Domain]:
    boot = ways.halting(tmp_path)
    with domain.running(daemon, ram=patterns.sparse, paused=False, boot=boot) as running:
        yield running


def saved_xml(site: cli.Site, path: Path) -> str:
    return site.run("inspect", "--xml", path, check=0).stdout


def titled(xml: str) -> str:
    return xml.replace("</name>", f"</name>{TITLE}")


@pytest.mark.parametrize("save", ["native", "libvirt"])
def test_restored_beside_the_guest_that_runs_on(
    daemon: Daemon, site: cli.Site, tmp_path: Path, guest: Domain, save: ways.Save
) -> None:
    before = ram.snapshot(guest.ram, tmp_path / "before")
    path = site.images / "image"
    options = ("-o", path, "--format", save, "--then", "resume")
    site.run("save", guest.address, *options, check=0)
    error = site.run("restore", path, "--guest", guest.address, "--json", check=8).error()
    assert "is already running" in error["message"]

    copy = Domain(daemon, "the 'copy' <é>", str(uuid.uuid4()))
    xml = titled(saved_xml(site, path)).replace(guest.uuid, copy.uuid)
    file = tmp_path / "the copy's é.xml"
    file.write_text(xml.replace("<name>guest<", "<name>the 'copy' &lt;é&gt;<"), encoding="utf-8")
    restored = site.run(
        "restore", path, "--guest", guest.address, "--xml", file, "--json", check=0
    ).json()
    assert restored["monitor"] == copy.address
    assert copy.state() == guest.state() == "running (unpaused)"
    assert TITLE in copy.xml()
    assert copy.pid != guest.pid
    ram.assert_same(before, copy.ram)
    ram.assert_same(before, guest.ram)
    # It is a guest like any other: its own images name it.
    site.run("save", copy.address, "-o", "second", check=0)
    assert site.run("inspect", "second", "--json", check=0).json()["guest_uuid"] == copy.uuid


@pytest.mark.parametrize("restore", ["own", "through"])
def test_restored_with_another_title(
    site: cli.Site, tmp_path: Path, guest: Domain, restore: ways.Restore
) -> None:
    before = ram.snapshot(guest.ram, tmp_path / "before")
    path = ways.save("libvirt", guest, site)
    file = tmp_path / "titled.xml"
    file.write_text(titled(saved_xml(site, path)), encoding="utf-8")
    ways.restore(restore, guest, site, path, "--xml", str(file))
    assert TITLE in guest.xml()
    ram.assert_same(before, guest.ram)
    # The image has the definition that it had.
    assert TITLE not in saved_xml(site, path)


def test_transient_guest_is_made_persistent_by_the_images_xml(
    daemon: Daemon, site: cli.Site, tmp_path: Path, guest: Domain
) -> None:
    """That of the restored guest waits for a guest to come in; the image's does not."""
    path = ways.save("libvirt", guest, site)
    done = site.run("restore", path, "--guest", guest.address, check=0)
    assert "no persistent definition" in done.stderr
    assert "'-incoming'" in guest.xml("--inactive") and "'-incoming'" not in saved_xml(site, path)
    file = tmp_path / "its.xml"
    file.write_text(saved_xml(site, path), encoding="utf-8")
    daemon.virsh("define", file)
    guest.virsh("destroy")
    guest.virsh("start")
    assert guest.state().startswith("running")
    # One that is persistent gets what it was defined by.
    site.run("save", guest.address, "-o", path, "--replace", check=0)
    done = site.run("restore", path, "--guest", guest.address, check=0)
    assert "no persistent definition" not in done.stderr
    assert "'-incoming'" not in guest.xml("--inactive")


def test_what_follows_an_empty_cpu_element_is_kept(daemon: Daemon, site: cli.Site) -> None:
    """The cookie's CPU takes the element's place; libvirt writes this one as it was given."""
    rest = "<cpu mode='maximum'/><clock offset='localtime'/><devices>"
    text = domain.definition("guest").replace("<devices>", rest)
    with domain.defined(daemon, text, "guest", transient=True) as guest:
        path = ways.save("libvirt", guest, site)
        assert re.search("<cpu mode='maximum'[^>]*/>", saved_xml(site, path))
        ways.restore("own", guest, site, path)
        assert "<clock offset='localtime'" in guest.xml()


def refused(site: cli.Site, daemon: Daemon, code: int, *words: str | Path) -> dict[str, Any]:
    """Run a restore that must fail and start nothing; return the error."""
    error: dict[str, Any] = site.run("restore", *words, "--json", check=code).json()["error"]
    wait.until(lambda: not daemon.domains() and not daemon.guests(), what="no domain")
    return error


def test_definitions_that_are_none(
    daemon: Daemon, site: cli.Site, tmp_path: Path, guest: Domain
) -> None:
    path = ways.save("libvirt", guest, site)
    guest.wait_state(domain.GONE)
    good, file = saved_xml(site, path), tmp_path / "broken.xml"
    image = path.read_bytes()
    broken = {
        "cut off": good[:-20],
        "another document": "<network><name>x</name></network>",
        "empty": "",
        "without a name": good.replace("<name>guest</name>", ""),
        "a document type": f"<!DOCTYPE x [<!ENTITY a 'b'>]>{good}",
    }
    for what, text in broken.items():
        file.write_text(text, encoding="utf-8")
        error = refused(site, daemon, 2, path, "--guest", guest.address, "--xml", file)
        assert "--xml" in error["message"], what
    file.write_bytes(b"\xff\xfe")
    assert str(file) in refused(site, daemon, 2, path, "--xml", file)["message"]
    missing = tmp_path / "missing.xml"
    assert str(missing) in refused(site, daemon, 2, path, "--xml", missing)["message"]
    assert path.read_bytes() == image


def test_definitions_that_do_not_fit(
    daemon: Daemon, site: cli.Site, tmp_path: Path, guest: Domain
) -> None:
    path = ways.save("libvirt", guest, site)
    guest.wait_state(domain.GONE)
    good, file = saved_xml(site, path), tmp_path / "other.xml"
    image = path.read_bytes()
    options = (path, "--guest", guest.address, "--xml", file)

    file.write_text(good.replace(">65536<", ">131072<"), encoding="utf-8")
    assert "RAM" in refused(site, daemon, 3, *options)["message"]
    assert "memory" in refused(site, daemon, 5, *options, "--through-libvirt")["message"]
    file.write_text(good.replace("halt.bin", "missing.bin"), encoding="utf-8")
    error = refused(site, daemon, 5, *options, "--trust-image")
    assert (error["id"], "missing.bin" in error["message"]) == ("restore.launch", True)
    file.write_text(good.replace("pc-i440fx", "pc-q35"), encoding="utf-8")
    assert "q35" in refused(site, daemon, 3, *options)["message"]
    assert path.read_bytes() == image
    ways.restore("own", guest, site, path)
