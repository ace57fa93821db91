"""Behind mapsave, libvirt goes on with the guest as if nothing had been."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args
from xml.sax import saxutils

import pytest
from mapsave.monitor import definition

from tests.kit import cli, domain, libvirtd, patterns, ram, state, storage, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

# What mapsave has done with the guest: saved and let it go on, or restored it in one of two ways.
Treatment = Literal["resume", "own", "through"]
MIB = patterns.MIB


def disk(directory: Path) -> str:
    """Return the ``<disk>`` of a disk that can hold snapshots with memory."""
    path = directory / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    source = saxutils.quoteattr(str(path))
    return (
        "<disk type='file'><driver name='qemu' type='qcow2'/>"
        f"<source file={source}/><target dev='vda' bus='virtio'/></disk>"
    )


def treat(how: Treatment, guest: Domain, site: cli.Site, path: Path) -> None:
    """Save the running guest to ``path``, and have it run again."""
    if how == "resume":
        site.run("save", guest.address, "-o", path, "--then", "resume", check=0)
    else:
        site.run("save", guest.address, "-o", path, check=0)
        ways.restore(how, guest, site, path)
    assert guest.state() == "running (unpaused)"


@contextmanager
def running(daemon: Daemon, directory: Path) -> Iterator[Domain]:
    """Run a persistent guest with a disk, whose RAM stays as it is."""
    boot, devices = ways.halting(directory), disk(directory)
    with domain.running(
        daemon, ram=patterns.sparse, transient=False, paused=False, boot=boot, devices=devices
    ) as guest:
        yield guest


@pytest.mark.parametrize("how", get_args(Treatment))
def test_libvirt_goes_on_with_the_guest(
    daemon: Daemon, site: cli.Site, tmp_path: Path, how: Treatment
) -> None:
    with running(daemon, tmp_path) as guest:
        before, fresh = ram.snapshot(guest.ram, tmp_path / "before"), guest.status()
        path = site.images / "image"
        treat(how, guest, site, path)
        state.assert_left_as_found(fresh, guest.status())
        assert str(path) not in " ".join(guest.open_files())
        assert guest.virsh("domjobinfo").stdout.split() == ["Job", "type:", "None"]
        assert guest.virsh("domjobabort", check=False).returncode != 0
        ram.assert_same(before, guest.ram)

        # With mapped-ram or multifd left on this would end QEMU; the save, which has no descriptor
        # with O_DIRECT, with direct-io left on.
        guest.virsh("snapshot-create-as", "inside")
        assert guest.state() == "running (unpaused)"
        guest.virsh("save", tmp_path / "saved", "--image-format", "sparse")
        assert guest.state() == "shut off (saved)"
        site.run("verify", tmp_path / "saved", check=0)
        daemon.virsh("restore", tmp_path / "saved")
        ram.assert_same(before, guest.ram)

        guest.virsh("managedsave")
        guest.virsh("start")
        assert guest.state() == "running (restored)"
        ram.assert_same(before, guest.ram)
        memory = f"file={tmp_path / 'memory'},snapshot=external"
        new_disk = f"vda,snapshot=external,file={tmp_path / 'overlay'}"
        guest.virsh("snapshot-create-as", "outside", "--memspec", memory, "--diskspec", new_disk)
        guest.virsh("snapshot-revert", "outside")
        ram.assert_same(before, guest.ram)
        # Once more, with what libvirt's own operations have left on.
        treat("resume", guest, site, site.images / "second")
        guest.virsh("destroy")
        assert guest.state() == "shut off (destroyed)"


def test_internal_snapshot_of_a_guest_that_waited_for_its_image(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    """The live definition has QEMU wait for a guest to come in, and a snapshot keeps that: libvirt
    11.3 cannot revert to it, unless that is taken out of it."""
    with running(daemon, tmp_path) as guest:
        before = ram.snapshot(guest.ram, tmp_path / "before")
        treat("own", guest, site, site.images / "image")
        guest.virsh("snapshot-create-as", "one")
        text = guest.virsh("snapshot-dumpxml", "one", "--security-info").stdout
        assert "defer" in text
        (tmp_path / "one.xml").write_text(definition.without_restore(text))
        guest.virsh("snapshot-create", tmp_path / "one.xml", "--redefine")
        guest.virsh("snapshot-revert", "one")
        assert guest.state() == "running (from snapshot)"
        ram.assert_same(before, guest.ram)
        assert "defer" not in guest.xml()


@contextmanager
def nobody_reaps(daemon: Daemon) -> Iterator[None]:
    """Have the daemon's QEMUs stay zombies when they end, as an init that is slow would."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    reaper = int(status.partition("PPid:")[2].split()[0])
    os.kill(reaper, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(reaper, signal.SIGCONT)


def test_restore_right_behind_a_save_whose_qemu_is_not_yet_reaped(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with running(daemon, tmp_path) as guest:
        before = ram.snapshot(guest.ram, tmp_path / "before")
        path = site.images / "image"
        words = ("restore", str(path), "--guest", guest.address)
        with contextlib.ExitStack() as later:
            with nobody_reaps(daemon):
                site.run("save", guest.address, "-o", path, check=0)
                restoring = later.enter_context(site.start(*words))
                time.sleep(0.5)
                assert restoring.poll() is None, restoring.communicate()
            assert restoring.wait(wait.LONG) == 0
        ram.assert_same(before, guest.ram)


@pytest.mark.root
def test_image_can_be_deleted_and_its_file_system_unmounted(tmp_path: Path) -> None:
    with (
        storage.tmpfs(256 * MIB, tmp_path) as place,
        libvirtd.running() as daemon,
        running(daemon, tmp_path) as guest,
    ):
        site = cli.Site(place / "site")

        def free() -> int:
            return os.statvfs(place).f_bfree

        for how in get_args(Treatment):
            path, at_first = place / how, free()
            treat(how, guest, site, path)
            assert free() < at_first - 4096 // os.statvfs(place).f_bsize
            taken = path.stat().st_blocks * 512 // os.statvfs(place).f_bsize
            with_it = free()
            path.unlink()
            assert free() == with_it + taken, f"{how}: something has the image open"
        inside = ["nsenter", f"--mount=/proc/{daemon.pid}/ns/mnt"]
        subprocess.run([*inside, "umount", place], check=True)
        subprocess.run(["umount", place], check=True)
        assert guest.state() == "running (unpaused)"
        # storage.tmpfs() unmounts what is mounted there.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
        assert daemon.alive()
