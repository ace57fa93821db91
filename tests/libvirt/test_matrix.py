"""Every way to save against every way to restore: RAM, run state and definition are the same."""

import itertools
from pathlib import Path
from typing import get_args

import pytest

from tests.kit import cli, domain, patterns, qemu, ram
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

PERSISTENT = "persistent"
TRANSIENT = "transient"
# libvirt cannot read images of mapsave's native format.
CELLS = [
    (save, restore, PERSISTENT)
    for save, restore in itertools.product(get_args(ways.Save), get_args(ways.Restore))
    if save != "native" or restore == "own"
]
# What ends with the guest, and is not there when it comes back, is the same for all ways.
CELLS += [("native", "own", TRANSIENT), ("libvirt", "through", TRANSIENT)]
CELLS += [("libvirt", "virsh", TRANSIENT), ("virsh", "own", TRANSIENT)]


def persistent_xml(guest: Domain) -> str:
    return guest.xml("--inactive", "--security-info")


def assert_ended(guest: Domain, how: ways.Save, *, transient: bool) -> None:
    reason = "saved" if how == "virsh" else "shutdown"
    guest.wait_state(domain.GONE if transient else f"shut off ({reason})")


def assert_runs(guest: Domain, how: ways.Restore) -> None:
    # mapsave has libvirt restore the guest paused, marks the image, and resumes the guest then.
    assert guest.state() == f"running ({'restored' if how == 'virsh' else 'unpaused'})"
    assert guest.execute("query-status")["status"] == "running"


def assert_paused(guest: Domain, how: ways.Restore) -> None:
    assert guest.state() == f"paused ({'user' if how == 'own' else 'migrating'})"
    assert guest.execute("query-status")["status"] in ("paused", "prelaunch")


@pytest.mark.parametrize(("save", "restore", "kind"), CELLS)
def test_saved_one_way_and_restored_another(
    daemon: Daemon,
    site: cli.Site,
    tmp_path: Path,
    save: ways.Save,
    restore: ways.Restore,
    kind: str,
) -> None:
    boot, transient = ways.halting(tmp_path), kind == TRANSIENT
    # A domain that is defined nowhere, and that mapsave has not saved, is a stranger.
    trust = ["--trust-image"] if transient and save == "virsh" else []
    # KVM, as users have it: the firmware ends at once.
    kvm = qemu.has_kvm()
    with domain.running(
        daemon, ram=patterns.sparse, boot=boot, transient=transient, kvm=kvm
    ) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        defined = None if transient else persistent_xml(guest)
        guest.virsh("resume")
        for name in ("running", "paused"):
            path = ways.save(save, guest, site, name)
            assert_ended(guest, save, transient=transient)
            assert defined is None or persistent_xml(guest) == defined
            ways.restore(restore, guest, site, path, *trust)
            (assert_runs if name == "running" else assert_paused)(guest, restore)
            assert defined is None or persistent_xml(guest) == defined
            assert daemon.virsh("list", "--uuid", f"--{kind}").stdout.split() == [guest.uuid]
            ram.assert_same(before, guest.ram)
            if name == "running":
                guest.virsh("suspend")


def test_libvirt_is_not_asked_to_restore_the_native_format(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with domain.running(daemon, boot=ways.halting(tmp_path), paused=False) as guest:
        path = ways.save("native", guest, site)
        arguments = (path, "--guest", guest.address, "--through-libvirt", "--json")
        error = site.run("restore", *arguments, check=2).error()
        assert "native" in error["message"] and "--through-libvirt" in error["hint"]
        guest.wait_state(domain.GONE)
        # The image is as it was.
        ways.restore("own", guest, site, path)
        assert_runs(guest, "own")


def test_the_user_says_whether_it_runs(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with domain.running(daemon, boot=ways.halting(tmp_path), paused=False) as guest:
        path = ways.save("libvirt", guest, site)
        assert_ended(guest, "libvirt", transient=True)
        ways.restore("own", guest, site, path, "--paused")
        assert_paused(guest, "own")
        guest.virsh("destroy")
        ways.restore("own", guest, site, path, "--run", "--again")
        assert_runs(guest, "own")


def test_libvirt_shows_the_definition_that_it_would_have_saved(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    devices = f"<graphics type='vnc' socket='{daemon.directory}/vnc' passwd='secret'/>"
    with domain.running(daemon, "a 'b' &<é>", transient=False, devices=devices) as guest:
        ours, theirs = site.images / "ours", site.images / "theirs"
        site.run("save", guest.address, "-o", ours, "--then", "leave", check=0)
        guest.virsh("destroy")
        guest.virsh("start", "--paused")
        guest.virsh("save", theirs, "--image-format", "sparse")

        def shown(path: Path, *options: str) -> str:
            return daemon.virsh("save-image-dumpxml", path, *options).stdout

        assert shown(ours) == shown(theirs)
        assert shown(ours, "--security-info") == shown(theirs, "--security-info")
        assert "secret" in shown(ours, "--security-info")
        assert "secret" not in shown(ours)
