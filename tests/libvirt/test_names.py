"""Guests of libvirt and their images go by any name, and are found by name, uuid and id."""

import shlex
from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns, ram
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon

NAME = "-#,= a \"b\" 'c' &<é> $(id) `x` 名前 %s \\n;*?"


def configured(site: cli.Site, name: str, guest: Domain) -> str:
    """Add the guest to the configuration; return the name."""
    site.add_guest(name, libvirt={"uri": guest.daemon.uri, "domain": guest.name})
    return name


def test_odd_names_of_domains_and_images(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    directory = tmp_path / f"in {NAME}"
    directory.mkdir()
    with domain.running(daemon, NAME, ram=patterns.sparse, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        called = configured(site, "é 'web' \"&<01>\"", guest)
        path = directory / f"im {NAME}"
        saved = site.run("save", called, "-o", path, "--json", check=0).json()
        assert (saved["image"], saved["guest"]) == (str(path), called)
        assert guest.virsh("domname").stdout.strip() == NAME
        found = site.run("inspect", path, "--json", check=0).json()
        assert found["guest_uuid"] == guest.uuid
        site.run("verify", path, check=0)
        # Without --guest: the image says whose it is.
        site.run("restore", path, "--json", check=0)
        ram.assert_same(before, guest.ram)
        site.run("save", called, "-o", path, "--replace", check=0)
        guest.wait_state("shut off")
        daemon.virsh("restore", path)
        ram.assert_same(before, guest.ram)
        guest.virsh("save", path, "--image-format", "sparse")
        site.run("restore", path, "--guest", called, "--through-libvirt", check=0)
        ram.assert_same(before, guest.ram)


def test_name_uuid_and_id_name_the_domain(daemon: Daemon, site: cli.Site) -> None:
    with domain.running(daemon, "a 'b' &<é>", transient=False) as guest:
        number = guest.virsh("domid").stdout.strip()
        configured(site, "web01", guest)
        words = (guest.name, guest.uuid, number)
        for address in (*(f"libvirt+{daemon.uri}#{each}" for each in words), "web01"):
            checked = site.run("check", address, "--json", check=0).json()
            assert all(line["ok"] for line in checked["checks"])
            assert checked["guest"] == address
            path = site.images / "image"
            site.run("save", address, "-o", path, "--replace", "--then", "leave", check=0)
            guest.virsh("resume")
            guest.virsh("suspend")
        assert site.run("inspect", path, "--json", check=0).json()["guest_uuid"] == guest.uuid
        # What names no domain is said so, whatever it looks like.
        for unknown in ("nobody", "9999", "00000000-0000-4000-8000-000000000000"):
            result = site.run("save", f"libvirt+{daemon.uri}#{unknown}", "--json", check=2)
            assert result.error_id() == "guest.unknown"
            assert unknown in result.error()["message"]
        assert guest.state() == "paused (user)"


def test_domain_whose_name_is_the_id_of_another(daemon: Daemon, site: cli.Site) -> None:
    with domain.running(daemon, "first") as other:
        number = other.virsh("domid").stdout.strip()
        with domain.running(daemon, number) as guest:
            saved = site.run("save", guest.address, "--json", check=0).json()
            guest.wait_state(domain.GONE)
            assert other.state() == "paused (user)"
            assert saved["image"].startswith(f"{site.images}/{number}-")


def test_address_with_the_id_of_another_behind_a_hash(daemon: Daemon, site: cli.Site) -> None:
    with domain.running(daemon, "first") as other:
        number = other.virsh("domid").stdout.strip()
        with domain.running(daemon, f"vm#{number}") as guest:
            assert site.run("check", guest.address, "--json", check=0)
            site.run("save", guest.address, "-o", "image", check=0)
            guest.wait_state(domain.GONE)
            assert other.state() == "paused (user)"
            found = site.run("inspect", "image", "--json", check=0).json()
            assert found["guest_uuid"] == guest.uuid
            restored = site.run("restore", "image", "--guest", guest.address, "--json", check=0)
            assert restored.json()["monitor"] == guest.address
            assert guest.state() == "paused (user)"


@pytest.mark.parametrize("more", [[], ["--through-libvirt"]])
def test_image_of_another_domain_than_the_one_named(
    daemon: Daemon, site: cli.Site, tmp_path: Path, more: list[str]
) -> None:
    with domain.running(daemon, "web01", transient=False) as guest:
        site.add_guest("db", libvirt={"uri": daemon.uri, "domain": "db01"})
        number = guest.virsh("domid").stdout.strip()
        by_id = f"libvirt+{daemon.uri}#{number}"
        site.run("save", by_id, "-o", "image", check=0)
        for other in ("db", f"libvirt+{daemon.uri}#db01", f"libvirt+{daemon.uri}#9999"):
            result = site.run("restore", "image", "--guest", other, *more, "--json", check=2)
            error = result.error("usage")
            assert "--xml" in error["hint"]
            assert "is of domain 'web01'" in error["message"]
            assert guest.state().startswith("shut off")
        file = tmp_path / "its.xml"
        file.write_text(guest.xml("--inactive"), encoding="utf-8")
        upper = f"libvirt+{daemon.uri}#{guest.uuid.upper()}"
        for words in (["db", "--xml", str(file)], [guest.address], [upper], [by_id]):
            site.run("restore", "image", "--again", "--guest", *words, *more, check=0)
            assert guest.state().startswith("paused")
            guest.virsh("destroy")


@pytest.mark.parametrize("name", ["漢" * 80, "é" * 100 + "n" * 40])
def test_domain_with_a_long_name(daemon: Daemon, site: cli.Site, name: str) -> None:
    with domain.running(daemon, name) as guest:
        (line,) = site.run("list", "--libvirt", "--uri", daemon.uri, "--json").json()["domains"]
        assert (line["name"], line["can_save"]) == (name, True)
        saved = site.run("save", guest.address, "--json", check=0).json()
        assert saved["image"].startswith(f"{site.images}/{name[:50]}")
        site.run("restore", saved["image"], "--guest", guest.address, check=0)


def test_domain_that_is_shut_off(daemon: Daemon, site: cli.Site) -> None:
    with domain.defined(daemon, domain.definition("it's off"), "it's off") as guest:
        error = site.run("save", guest.address, "--json", check=3).error("check.run_state")
        assert "shut off" in error["message"]
        assert error["hint"].endswith(f"virsh start {shlex.quote(guest.name)}")
        assert not any(site.images.iterdir())
