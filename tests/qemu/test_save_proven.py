"""The guest goes only once its image has been loaded, and found to be its RAM."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.image import image

from tests.kit import cli, patterns, qemu, wait

MIB = 1 << 20
_DEVICES = ["-device", "virtio-rng-pci"]


@pytest.fixture
def guest(site: cli.Site) -> Iterator[qemu.Qemu]:
    with qemu.guest(site, "web01", *_DEVICES, machine="q35", ram=patterns.sparse) as running:
        yield running


def _started_by(site: cli.Site, guest: qemu.Qemu, directory: Path, script: str) -> None:
    """Have the guest started by a program that does something before it becomes QEMU."""
    program = directory / "begin"
    program.write_text(f'#!/bin/sh\n{script}\nexec "$@"\n')
    program.chmod(0o755)
    site.add_guest("web01", guest.qmp, launch=[str(program), *guest.argv])


@pytest.mark.parametrize("how", ["load", "pages"])
def test_a_proven_save(site: cli.Site, guest: qemu.Qemu, how: str) -> None:
    done = site.run("save", "web01", "-o", "it", "--prove", how, "--json", check=0).json()
    guest.wait()
    assert done["proof"]["by"] == how
    assert done["proof"]["devices"] > 10
    assert done["digests"] == ("taken" if how == "pages" else "pending")
    assert (done["proof"].get("compared_bytes", 0) > 0) == (how == "pages")
    assert done["proof"].get("compared_bytes", 0) <= done["ram_bytes"]
    shown = site.run("inspect", "it", "--json", check=0).json()
    assert shown["proof"] == done["proof"]
    assert "  proven     loaded by QEMU " in site.run("inspect", "it", check=0).stdout
    site.run("verify", "--data", "it", check=0)


def test_a_live_guest_is_proven_after_its_last_pause(site: cli.Site, guest: qemu.Qemu) -> None:
    guest.control.execute("cont")
    options = ["--live", "--then", "resume", "--prove", "pages", "--json"]
    done = site.run("save", "web01", "-o", "it", *options, check=0).json()
    assert done["proof"]["by"] == "pages"
    assert done["downtime_s"] >= done["phases_s"]["prove"]
    assert guest.status() == "running"


@pytest.mark.parametrize("then", ["quit", "resume"])
@pytest.mark.parametrize("is_kept", [False, True])
def test_what_cannot_be_loaded_is_no_image(
    site: cli.Site, guest: qemu.Qemu, then: str, is_kept: bool
) -> None:
    """The guest is started without its device from now on: the image could not be restored."""
    guest.control.execute("cont")
    launch = [word for word in guest.argv if word not in _DEVICES]
    site.add_guest("web01", guest.qmp, launch=launch, save={"prove": "load"})
    options = ["--then", then, *(["--keep-unproven"] if is_kept else [])]
    error = site.run("save", "web01", "-o", "it", *options, "--json", check=4).error("proof.failed")
    assert "virtio-rng" in error["data"]["reason"]
    assert guest.status() == "running"
    assert os.listdir(site.images) == (["it.unproven"] if is_kept else [])
    if is_kept:
        assert error["data"]["unproven"] == str(site.images / "it.unproven")
        site.run("inspect", "it.unproven", check=0)
        site.run("restore", "it.unproven", check=6)
    site.run("save", "web01", "-o", "it", "--prove", "none", check=0)


# What happens to the file once it was written: it is found by its pages alone.
_CHANGES = {
    "flipped": "printf X | dd of={path} bs=1 seek={at} conv=notrunc status=none",
    "zeros": "fallocate -p -o {at} -l 4096 {path}",
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("then", ["quit", "resume"])
def test_pages_that_changed_are_found(
    site: cli.Site, guest: qemu.Qemu, tmp_path: Path, change: str, then: str
) -> None:
    site.run("save", "web01", "-o", "first", "--then", "resume", check=0)
    with image.opened(site.images / "first") as opened:
        (block, *_) = opened.validate().stream.blocks
    data = block.pages_offset + 5 * MIB
    guest.ram.write("pc.ram", 5 * MIB, b"here" * 1024)
    guest.control.execute("cont")
    script = _CHANGES[change].format(path=site.images / "it.partial", at=data)
    _started_by(site, guest, tmp_path, script)
    options = ["--then", then, "--prove", "pages", "--json"]
    error = site.run("save", "web01", "-o", "it", *options, check=4).error("proof.pages")
    assert error["data"]["pages"] == [{"block": "pc.ram", "address": 5 * MIB}]
    assert guest.status() == "running"
    assert sorted(os.listdir(site.images)) == ["first"]
    site.run("save", "web01", "-o", "it", *options[:2], "--prove", "load", check=0)


def test_a_save_that_died_in_its_proof_is_rolled_back(
    site: cli.Site, guest: qemu.Qemu, tmp_path: Path
) -> None:
    guest.control.execute("cont")
    _started_by(site, guest, tmp_path, f"touch {tmp_path}/up; sleep 1000")
    with site.start("save", "web01", "-o", "it", "--prove", "load") as process:
        wait.until(lambda: (tmp_path / "up").exists(), what="the throwaway QEMU")
        process.send_signal(signal.SIGKILL)
        process.wait(wait.LONG)
    assert guest.status() == "postmigrate"
    assert "rolled back" in site.run("recover", check=0).stdout
    assert guest.status() == "running"
    assert os.listdir(site.images) == []


def test_interrupted_in_its_proof_it_leaves_the_guest_running(
    site: cli.Site, guest: qemu.Qemu, tmp_path: Path
) -> None:
    guest.control.execute("cont")
    _started_by(site, guest, tmp_path, f"touch {tmp_path}/up; sleep 1000")
    with site.start("save", "web01", "-o", "it", "--prove", "load") as process:
        wait.until(lambda: (tmp_path / "up").exists(), what="the throwaway QEMU")
        process.send_signal(signal.SIGINT)
        assert process.wait(wait.LONG) == 9
    assert guest.status() == "running"
    assert os.listdir(site.images) == []


def test_check_says_beforehand_what_cannot_be_proven(site: cli.Site, guest: qemu.Qemu) -> None:
    launch = [*guest.argv, "-device", "vfio-pci,host=00:00.0"]
    site.add_guest("web01", guest.qmp, launch=launch)
    found = site.run("check", "web01", "--json", check=0).json()
    (line,) = (line for line in found["checks"] if line["check"] == "proof")
    assert "vfio-pci" in line["detail"]
    site.add_guest("web01", guest.qmp, launch=launch, save={"prove": "pages"})
    site.run("check", "web01", "--json", check=3)
    error = site.run("save", "web01", "-o", "it", "--json", check=3).error("check.not_provable")
    assert "vfio-pci" in error["message"]
    assert guest.status() == "prelaunch"
    site.run("save", "web01", "-o", "it", "--prove", "none", check=0)


def test_an_emulated_guest_is_loaded(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "16M", "pattern": "fragmented"})
    done = site.run("save", "toy", "-o", "toy", "--prove", "load", "--json", check=0).json()
    assert done["proof"]["by"] == "load"
