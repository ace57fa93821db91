"""A domain XML that names what the domain does not have here: libvirt never gets it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import strict_json
from mapsave.image import descriptors, image, superblock

from tests.kit import cli, domain, patterns, ram, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways
from tests.libvirt.victim import Victim


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file that the guest's serial line goes to: a path of the host."""
    return tmp_path / "serial.log"


@pytest.fixture
def guest(daemon: Daemon, log: Path) -> Iterator[Domain]:
    devices = f"<serial type='file'><source path='{log}'/></serial>"
    with domain.running(
        daemon, "web01", ram=patterns.sparse, memory=16 << 20, transient=False, devices=devices
    ) as running:
        yield running


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A program that leaves a mark when it is run."""
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'has-run'}\nexit 1\n")
    program.chmod(0o755)
    return program


def edited(guest: Domain, path: Path, tmp_path: Path, old: str, new: str) -> None:
    """Do to an image's XML what ``virsh save-image-edit`` does."""
    shown = guest.daemon.virsh("save-image-dumpxml", path, "--security-info").stdout
    assert old in shown
    file = tmp_path / "edited.xml"
    file.write_text(shown.replace(old, new, 1), encoding="utf-8")
    guest.daemon.virsh("save-image-define", path, file)


def refused(site: cli.Site, daemon: Daemon, *words: str | Path, code: int = 7) -> dict[str, Any]:
    """Run a restore that must be refused and start nothing; return the error."""
    error: dict[str, Any] = site.run("restore", *words, "--json", check=code).json()["error"]
    wait.until(lambda: not daemon.guests(), what="no guest")
    return error


def names(error: dict[str, Any]) -> list[tuple[str, str]]:
    assert error["id"] == "image.foreign_resource", error
    return [(each["kind"], each["name"]) for each in error["data"]["resources"]]


@pytest.mark.parametrize("way", [[], ["--through-libvirt"]], ids=["own", "through"])
def test_an_emulator_of_the_image_is_not_run(
    site: cli.Site, tmp_path: Path, guest: Domain, evil: Path, way: list[str]
) -> None:
    path = ways.save("libvirt", guest, site)
    xml = site.run("inspect", "--xml", path, check=0).stdout
    emulator = xml.partition("<emulator>")[2].partition("<")[0]
    # As save-image-define does, which would run it at once, to see what it can.
    Victim(path).xml(xml.replace(f">{emulator}<", f">{evil}<"))
    options = (path, "--guest", guest.address, *way)
    assert names(refused(site, guest.daemon, *options)) == [("program", str(evil))]
    mark = tmp_path / "has-run"
    assert not mark.exists()
    shown = site.run("inspect", path, "--json", check=0).json()
    assert {"kind": "program", "name": str(evil)} in shown["names"]
    assert f"program    {evil}" in site.run("inspect", path, check=0).stdout
    assert f"program    {evil}" in site.run("check", path, check=0).stdout
    # Only for who trusts it.
    refused(site, guest.daemon, *options, "--trust-image", code=5)
    assert mark.exists()


_LINE = "</devices>"
_FOREIGN = {
    "arguments": (
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-S'/>"
        "</commandline>",
        ("other", "arguments -S"),
    ),
    "disk": (
        "<disk type='file' device='disk'><source file='/etc/shadow'/><target dev='sda' bus='usb'/>"
        "</disk>",
        ("path", "/etc/shadow"),
    ),
    "log": (
        "<serial type='null'><log file='/var/log/messages' append='on'/></serial>",
        ("path", "/var/log/messages"),
    ),
    "device": (
        "<rng model='virtio'><backend model='random'>/dev/mem</backend></rng>",
        ("device", "/dev/mem"),
    ),
}


@pytest.mark.parametrize("what", _FOREIGN)
def test_paths_devices_and_arguments_of_the_image_are_refused(
    site: cli.Site, tmp_path: Path, guest: Domain, what: str
) -> None:
    """Of a native image, whose XML no one but mapsave reads."""
    more, wanted = _FOREIGN[what]
    path = ways.save("native", guest, site)
    known = dict(_metadata(path))
    xml = known["domain"]["xml"]
    where = "</domain>" if what == "arguments" else _LINE
    known["domain"] = {**known["domain"], "xml": xml.replace(where, f"{more}{where}")}
    _rewrite(path, known)
    error = refused(site, guest.daemon, path, "--guest", guest.address)
    assert names(error) == [wanted]
    known["domain"] = {**known["domain"], "xml": f"<?xml version='1.0' encoding='UTF-7'?>{xml}"}
    _rewrite(path, known)
    assert "UTF-7" in refused(site, guest.daemon, path, "--guest", guest.address, code=6)["message"]


def _metadata(path: Path) -> dict[str, Any]:
    with image.opened(path) as opened:
        found: dict[str, Any] = strict_json.loads(strict_json.dumps(opened.metadata))
        return found


def _rewrite(path: Path, metadata: dict[str, Any]) -> None:
    """Give an image other metadata, with checksums that are right, and no digests."""
    with image.opened(path) as opened, descriptors.reopened(opened.fd, 1) as writable:
        superblock.write(writable, opened.block, metadata)


def test_what_the_domain_is_defined_with_is_known(
    site: cli.Site, tmp_path: Path, guest: Domain, daemon: Daemon
) -> None:
    before = guest.snapshot_ram(tmp_path / "before")
    path = ways.save("libvirt", guest, site)
    other = cli.Site(tmp_path / "other")  # which has never saved it
    copied = other.images / "copied"
    shutil.copy(path, copied)
    other.run("restore", copied, "--guest", guest.address, check=0)
    ram.assert_same(before, guest.snapshot_ram(tmp_path / "after"))


def test_a_domain_that_is_not_defined(
    daemon: Daemon, site: cli.Site, tmp_path: Path, log: Path
) -> None:
    """Known where mapsave saved it itself; elsewhere by the list of the configuration alone."""
    devices = f"<serial type='file'><source path='{log}'/></serial>"
    with domain.running(daemon, "web02", memory=16 << 20, devices=devices) as guest:
        path = ways.save("libvirt", guest, site)
        other = cli.Site(tmp_path / "other")
        copied = other.images / "copied"
        shutil.copy(path, copied)
        ways.restore("own", guest, site, path)
        guest.remove()

        options = (copied, "--guest", guest.address)
        assert names(refused(other, daemon, *options)) == [("path", str(log))]
        other.settings["trust"] = {"paths": ["/var/empty", str(log.parent)[:-1]]}
        other.write()
        assert names(refused(other, daemon, *options)) == [("path", str(log))]
        other.settings["trust"] = {"paths": [str(log.parent)]}
        other.write()
        other.run("restore", *options, check=0)
        guest.remove()
        # A note that others could have written is none.
        note = site.state / "domains" / f"{guest.uuid}.json"
        assert note.stat().st_mode & 0o777 == 0o600
        note.chmod(0o666)
        own = (path, "--guest", guest.address, "--again")
        assert names(refused(site, daemon, *own)) == [("path", str(log))]
        note.chmod(0o600)
        site.run("restore", *own, check=0)


def test_an_image_that_virsh_has_rewritten_is_restored_and_says_so(
    site: cli.Site, tmp_path: Path, guest: Domain
) -> None:
    path = ways.save("libvirt", guest, site)
    assert site.run("inspect", path, "--json", check=0).json()["warnings"] == []
    edited(guest, path, tmp_path, "</name>", "</name><title>another</title>")
    (warning,) = site.run("inspect", path, "--json", check=0).json()["warnings"]
    assert "no digests" in warning and "save-image-edit" in warning
    done = site.run("restore", path, "--guest", guest.address, "--json", check=0).json()
    assert warning in done["warnings"]
    assert "<title>another</title>" in guest.xml()


@pytest.mark.parametrize("format", ["libvirt", "native"])
def test_an_image_of_an_older_mapsave_is_restored(
    site: cli.Site, tmp_path: Path, guest: Domain, format: str
) -> None:
    """It has no digests, and nothing is noted of its domain."""
    before = guest.snapshot_ram(tmp_path / "before")
    path = ways.save("libvirt" if format == "libvirt" else "native", guest, site)
    shutil.rmtree(site.state / "domains")
    _rewrite(path, _metadata(path))
    done = site.run("restore", path, "--guest", guest.address, "--json", check=0).json()
    said = [each for each in done["warnings"] if "older mapsave" in each]
    assert bool(said) is (format == "libvirt")
    ram.assert_same(before, guest.snapshot_ram(tmp_path / "after"))


def test_another_definition_is_looked_at_as_well(
    site: cli.Site, tmp_path: Path, guest: Domain, evil: Path
) -> None:
    path = ways.save("libvirt", guest, site)
    file = tmp_path / "other.xml"
    xml = site.run("inspect", "--xml", path, check=0).stdout
    emulator = xml.partition("<emulator>")[2].partition("<")[0]
    file.write_text(xml.replace(f">{emulator}<", f">{evil}<"), encoding="utf-8")
    options = (path, "--guest", guest.address, "--xml", file)
    assert names(refused(site, guest.daemon, *options)) == [("program", str(evil))]
    file.write_text(xml, encoding="utf-8")
    file.chmod(0o666)
    error = refused(site, guest.daemon, *options)
    assert (error["id"], str(file) in error["message"]) == ("image.untrusted", True)
    file.chmod(0o600)
    site.run("restore", *options, check=0)
