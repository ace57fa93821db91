"""The hook for libvirt, as the daemon runs it: no domain starts afresh beside its image."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, ram, tree
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, inside, small

_HOOK = tree.ROOT / "examples/libvirt/hooks/qemu.d/mapsave"


@pytest.fixture
def guarding(own_daemon: Daemon, site: cli.Site) -> Iterator[Daemon]:
    """A daemon with the hook, which asks a mapsave of this site."""
    command = own_daemon.directory / "mapsave"
    words = shlex.join([*cli.COMMAND, "--config", str(site.config)])
    command.write_text(f'#!/bin/sh\nPYTHONPATH={tree.PYTHONPATH} exec {words} "$@"\n')
    hook = own_daemon.directory / "etc/libvirt/hooks/qemu.d/mapsave"
    hook.parent.mkdir(parents=True)
    text = _HOOK.read_text()
    assert text.count("mapsave=/usr/local/bin/mapsave") == 1
    hook.write_text(text.replace("/usr/local/bin/mapsave", str(command)))
    for path in (command, hook):
        path.chmod(0o755)
    own_daemon.restart()
    yield own_daemon


def test_a_domain_does_not_start_afresh(guarding: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """Its restores do: by mapsave, by virsh, and of a managed save."""
    with small(guarding, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        for how in (["restore"], ["restore", "--through-libvirt"], ["virsh"]):
            site.run("save", guest.address, "--image", IMAGE, "--replace", check=0)
            refused = guest.virsh("start", check=False)
            assert refused.returncode != 0
            assert f"mapsave restore {site.images / IMAGE}" in refused.stderr
            assert guest.state().startswith("shut off")
            if how == ["virsh"]:
                guarding.virsh("restore", site.images / IMAGE)
            else:
                site.run(*how, IMAGE, "--guest", guest.address, check=0)
            ram.assert_same(before, guest.ram)
        site.run("save", guest.address, "--managed", under=inside(guarding), check=0)
        guest.virsh("start")
        ram.assert_same(before, guest.ram)
        # virsh has restored the last one of the others without marking it.
        site.run("save", guest.address, "--image", "last", check=0)
        site.run("discard", "last", "--yes", check=0)
        guest.virsh("start", "--paused")


def test_what_libvirt_saved_of_mapped_ram_is_restored(
    guarding: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    """The hook gives it other memory than the image that it was mapped from: no page is old."""
    with small(guarding, transient=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        restore = ("restore", IMAGE, "--guest", guest.address, "--instant", "on")
        site.run(*restore, check=0)
        guest.ram.write("Pc.ram", 8 << 20, bytes(1 << 20))  # where the image has data
        before = guest.snapshot_ram(tmp_path / "before")
        guest.virsh("managedsave")
        guest.virsh("start", "--paused")
        ram.assert_same(before, guest.ram)


def test_a_state_that_cannot_be_read_does_not_keep_guests_from_starting(
    guarding: Daemon, site: cli.Site
) -> None:
    with small(guarding, transient=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        site.config.write_text("nonsense: true")
        guest.virsh("start", "--paused")
