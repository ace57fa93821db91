"""``mapsave list --libvirt`` and ``mapsave check``: what can be saved, told beforehand."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave.evacuation import guest_list
from mapsave.operations import attach, domains, locks

from tests.kit import cli, domain
from tests.kit.libvirtd import Daemon


def test_lists_domains_and_which_can_be_saved(daemon: Daemon, site: cli.Site) -> None:
    with (
        domain.running(daemon, "an odd <&> 'näme'") as odd,
        domain.running(daemon, "persistent", transient=False) as off,
        domain.running(daemon, "paused", paused=False) as running,
    ):
        off.virsh("destroy")
        done = site.run("list", "--libvirt", "--uri", daemon.uri, "--json")
        lines = {line["name"]: line for line in done.json()["domains"]}
        assert [line["uuid"] for line in lines.values()] == [
            guest.uuid for guest in (odd, running, off)
        ]
        assert lines["an odd <&> 'näme'"]["state"] == "paused"
        assert lines["an odd <&> 'näme'"]["persistent"] is False
        assert lines["paused"]["state"] == "running"
        assert [line["can_save"] for line in lines.values()] == [True, True, False]
        assert lines["persistent"]["state"] == "shut off"
        assert lines["persistent"]["error"]["id"] == "check.run_state"
        text = site.run("list", "--libvirt", "--uri", daemon.uri).stdout
        assert "an odd <&> 'näme' (transient)" in text
        assert "the domain is shut off" in text
        assert running.state().startswith("running")


def test_domain_that_disappears_meanwhile(
    daemon: Daemon, site: cli.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out, and the others are listed."""
    read = domains._line

    def striking(libvirt: Any, uri: str, handle: Any) -> dict[str, Any]:
        if handle.name() == "going":
            daemon.virsh("destroy", "going")
        return read(libvirt, uri, handle)

    monkeypatch.setattr(domains, "_line", striking)
    loaded = configuration.load(site.config, {})
    with domain.running(daemon, "going"), domain.running(daemon, "staying"):
        found = asyncio.run(domains.domains(loaded, daemon.uri))
    assert [(line["name"], line["can_save"]) for line in found] == [("staying", True)]


def test_guests_are_those_of_the_configuration_and_other_domains(
    daemon: Daemon, site: cli.Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = f"qemu+unix:///system?socket={tmp_path}/nowhere"
    for name, uri in (("web", daemon.uri), ("ended", daemon.uri), ("lost", nowhere)):
        site.add_guest(name, libvirt={"domain": f"{name}01", "uri": uri})
    monkeypatch.setattr(guest_list, "LIBVIRT_URI", daemon.uri)
    monkeypatch.setattr(guest_list, "_SOCKETS", (str(tmp_path),))
    loaded = configuration.load(site.config, {})
    with domain.running(daemon, "web01", paused=False), domain.running(daemon, "other") as other:
        asked = asyncio.run(guest_list.ask(loaded))
        key = attach.Monitor(uri=daemon.uri, domain=other.uuid).key
        with locks.held(loaded.state, "a test", key):
            again = asyncio.run(guest_list.ask(loaded))
    name = f"libvirt+{daemon.uri}#other"
    assert asked.states == {"web": "running", "ended": "not running", name: "paused"}
    assert [guest.name for guest in asked.others] == [name]
    assert [error.id for error in asked.unreachable] == ["check.unreachable"]
    assert asked.errors == {"lost": asked.unreachable[0]}
    assert again.states[name] == "busy"


def test_other_drivers_have_no_guests_of_ours(site: cli.Site) -> None:
    for uri, words in (("test:///default", "driver 'TEST'"), ("qemu:///\udcff", "not UTF-8")):
        done = site.run("list", "--libvirt", "--uri", uri, "--json", check=2)
        assert words in done.error()["message"]


def test_no_domains(daemon: Daemon, site: cli.Site) -> None:
    done = site.run("list", "--libvirt", "--uri", daemon.uri)
    assert done.stdout.strip() == f"no domains at {daemon.uri}"


def test_options_that_do_not_fit(site: cli.Site) -> None:
    site.run("list", "--uri", "qemu:///system", check=2)
    site.run("list", "--libvirt", "directory", check=2)


def test_check_tells_what_libvirt_says(daemon: Daemon, site: cli.Site) -> None:
    with domain.running(daemon, "web01") as guest:
        done = site.run("check", f"libvirt+{daemon.uri}#web01", "--json")
        found = done.json()
        line = next(line for line in found["checks"] if line["check"] == "domain")
        assert line["ok"]
        assert line["detail"].startswith("transient")
        assert found["can_save"]
        assert guest.state().startswith("paused")
