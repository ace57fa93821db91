"""``mapsave save-all --libvirt`` and the way back: domains that no one has configured."""

import json
from pathlib import Path

from tests.kit import cli, domain, emulated, patterns, ram
from tests.kit.libvirtd import Daemon


def test_active_domains_are_saved_and_come_back(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with (
        domain.running(daemon, "an odd <&> 'näme'", ram=patterns.dense) as odd,
        domain.running(daemon, "known", transient=False) as known,
        domain.running(daemon, "off", transient=False) as off,
    ):
        off.virsh("destroy")
        site.add_guest("mine", libvirt={"domain": known.uuid, "uri": daemon.uri}, priority=3)
        site.add_guest("shut", libvirt={"domain": "off", "uri": daemon.uri})
        site.add_guest("nosuch", libvirt={"domain": "nosuch", "uri": daemon.uri})
        before = odd.snapshot_ram(tmp_path / "before")
        words = ("--libvirt", "--uri", daemon.uri, "--json")
        done = site.run("save-all", *words, check=0).json()
        name = f"libvirt+{daemon.uri}#an odd <&> 'näme'"
        assert {line["guest"]: line["outcome"] for line in done["guests"]} == {
            "mine": "saved",
            name: "saved",
            "shut": "not_running",
            "nosuch": "not_running",
        }
        assert set(daemon.domains()) == {known.uuid, off.uuid}
        recorded = json.loads((site.state / "save-all.json").read_text())["guests"]
        assert [each["guest"] for each in recorded] == ["mine", name]
        back = site.run("restore-all", "--json", check=0).json()
        assert [line["outcome"] for line in back["guests"]] == ["restored", "restored"]
        assert known.state().startswith("paused")
        ram.assert_same(before, odd.ram)
        assert not (site.state / "save-all.json").exists()


def test_a_daemon_that_is_not_there_is_told(site: cli.Site, tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    failed = site.run("save-all", "--libvirt", "--uri", uri, check=3)
    assert "check.unreachable" in failed.stderr
    site.run("save-all", "--uri", uri, check=2)


def test_a_daemon_that_is_not_there_costs_no_other_guest_its_save(
    site: cli.Site, tmp_path: Path
) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    with emulated.guest(site, "web"):
        done = site.run("save-all", "--libvirt", "--uri", uri, "--json", check=3).json()
    assert emulated.outcomes(done) == {"web": "saved", uri: "failed"}
    assert done["guests"][1]["error"]["id"] == "check.unreachable"
    assert emulated.committed(site) == {"web"}
