"""What loading finds and structure does not, what is harmless, and that the guest is left alone."""

import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mapsave.image import image, superblock
from mapsave.image.mapped_ram import DeviceSection

from tests.kit import cli, files, patterns, qemu, wait
from tests.qemu.scene import saved, state_of

MIB = 1 << 20
SEED = 15

_MACHINE = "q35"
_DISK = ["-drive", "if=none,id=d0,driver=null-co,size=64M", "-device", "virtio-blk-pci,drive=d0"]
_NETWORK = ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]
_CONSOLE = ["-chardev", "null,id=c0", "-device", "virtio-serial-pci"]
_CONSOLE += ["-device", "virtserialport,chardev=c0,name=agent"]
_INPUT = ["-device", "qemu-xhci", "-device", "usb-tablet"]
_DISPLAY = ["-vga", "std"]
_PLAIN = [*_DISK, *_NETWORK, *_CONSOLE, *_INPUT, *_DISPLAY]


@dataclass(frozen=True)
class Scene:
    """A saved guest of many devices, and what its image says of them."""

    site: cli.Site
    guest: qemu.Qemu
    image: Path
    devices: tuple[DeviceSection, ...]

    def launch(self, *words: str, **changed: str) -> None:
        """Have the guest started with these devices, and ``changed`` machine or RAM size."""
        options = {"machine": _MACHINE, "memory": "32M", **changed}
        argv = qemu.command(
            *words,
            directory=self.guest.directory,
            name=self.guest.name,
            machine=options["machine"],
            memory=options["memory"],
        )
        self.site.add_guest(self.guest.name, self.guest.qmp, launch=argv)

    def prove(self, check: int, *options: str) -> dict[str, Any]:
        """Prove the image, of which nothing is left, and return what was printed."""
        found = self.site.run("prove", self.image, *options, "--json", check=check)
        proofs = self.site.state / "proofs"
        assert not proofs.exists() or not list(proofs.iterdir())
        return found.json() if check == 0 else found.error()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    site = cli.Site(tmp_path_factory.mktemp("prove") / "site")
    with saved(site, *_PLAIN, machine=_MACHINE, ram=patterns.sparse) as found:
        with image.opened(found.image) as opened:
            devices = opened.validate().stream.devices
        yield Scene(site, found.guest, found.image, devices)


def test_it_is_proven(scene: Scene) -> None:
    scene.launch(*_PLAIN)
    done = scene.prove(0)
    assert done["proven"] is True
    assert done["devices"] == [device.name for device in scene.devices]
    assert done["machine"].startswith("pc-q35-")
    assert done["warnings"] == []
    header, row = scene.site.run("prove", scene.image, check=0).stdout.splitlines()
    assert header.split() == ["PROVEN", "QEMU", "DEVICES", "TOOK", "IMAGE"]
    assert row.split()[0] == "yes"
    assert state_of(scene.site, scene.image) == "saved"


_AFTER_DISK = _PLAIN[len(_DISK) :]
_SOCKET = ["-chardev", "socket,id=c0,path=/nonexistent/x,server=on,wait=off", *_CONSOLE[2:]]
_FORWARD = ["-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:1-:22", *_NETWORK[2:]]
_FILES = ["-pidfile", "/nonexistent/pid", "-daemonize", "-D", "/nonexistent/log"]
# Other backends, which the guest does not see, and which could not be opened here.
_HARMLESS = {
    "another-disk-driver": [
        *("-blockdev", "driver=raw,node-name=d0,file.driver=null-co"),
        *(*_DISK[2:], *_AFTER_DISK),
    ],
    "missing-disk": ["-drive", "if=none,id=d0,file=/nonexistent/x", *_DISK[2:], *_AFTER_DISK],
    "another-display": [*_PLAIN, "-vnc", "unix:/nonexistent/vnc"],
    "another-console": [*_DISK, *_NETWORK, *_SOCKET, *_INPUT, *_DISPLAY],
    "forwarded-port": [*_DISK, *_FORWARD, *_CONSOLE, *_INPUT, *_DISPLAY],
    "memory-path": [*_PLAIN, "-mem-path", "/nonexistent", "-mem-prealloc"],
    "files": [*_PLAIN, *_FILES],
    "iothread": [*_PLAIN, "-object", "iothread,id=i0"],
}


@pytest.mark.parametrize("words", _HARMLESS.values(), ids=_HARMLESS.keys())
def test_what_the_guest_does_not_see_is_harmless(scene: Scene, words: list[str]) -> None:
    scene.launch(*words)
    scene.prove(0)


_MOVED = [*_NETWORK[:3], "virtio-net-pci,netdev=n0,addr=0x10"]
# Another guest, and what the reason names. Of the image alone nothing is wrong.
_DIFFERENT: dict[str, tuple[list[str], dict[str, str], str]] = {
    "device-missing": ([*_DISK, *_NETWORK, *_CONSOLE, *_DISPLAY], {}, "xhci"),
    "usb-device-missing": ([*_PLAIN[:-4], *_DISPLAY], {}, "usb-ptr"),
    "device-added": ([*_PLAIN, "-device", "virtio-rng-pci"], {}, "virtio-rng"),
    "usb-device-added": ([*_PLAIN, "-device", "usb-kbd"], {}, "usb-kbd"),
    "serial-added": ([*_PLAIN, "-serial", "null"], {}, "serial"),
    "device-moved": ([*_DISK, *_MOVED, *_CONSOLE, *_INPUT, *_DISPLAY], {}, "virtio-net"),
    "another-disk": ([*_DISK[:3], "ide-hd,drive=d0", *_AFTER_DISK], {}, "virtio-"),
    "no-display": ([*_PLAIN[:-2], "-vga", "none"], {}, "vga"),
    "machine": (_PLAIN, {"machine": "pc"}, "machine type"),
    "machine-version": (_PLAIN, {"machine": "pc-q35-9.0"}, "machine type"),
    "machine-option": (_PLAIN, {"machine": "q35,hpet=off"}, "hpet"),
    "cpu": ([*_PLAIN, "-cpu", "Nehalem"], {}, "processor"),
    "cpu-feature": ([*_PLAIN, "-cpu", "qemu64,-sse3"], {}, "features missing"),
    "vcpus": ([*_PLAIN, "-smp", "2"], {}, "vCPUs"),
    "topology": ([*_PLAIN, "-smp", "1,maxcpus=2"], {}, "topology"),
    "less-ram": (_PLAIN, {"memory": "16M"}, "RAM size"),
    "more-ram": (_PLAIN, {"memory": "64M"}, "RAM size"),
}


@pytest.mark.parametrize(("words", "changed", "named"), _DIFFERENT.values(), ids=_DIFFERENT.keys())
def test_another_guest_is_found(
    scene: Scene, words: list[str], changed: dict[str, str], named: str
) -> None:
    scene.launch(*words, **changed)
    scene.site.run("verify", scene.image, check=0)
    error = scene.prove(4)
    assert error["id"] == "proof.failed"
    assert named in error["data"]["reason"]
    assert state_of(scene.site, scene.image) == "saved"


# Names of parts within the state of a device, as QEMU writes them: 0x05, length, name.
_PART = re.compile(rb"\x05[\x05-\x40]([a-z0-9_\-]+/[a-z0-9_/\-]+)")
# Where QEMU misses what it needs; of other data that has changed it notices nothing.
_TORN = ("cpu", "fw_cfg", "vga", "virtio-blk", "virtio-console", "ich9_ahci")


@contextmanager
def _changed(scene: Scene, at: int, data: bytes, *, is_known: bool = False) -> Iterator[None]:
    """Have other data in the image, as if it had been written so, unless a digest ``is_known``."""
    with files.opened(scene.image, os.O_RDWR) as fd, image.opened(scene.image) as opened:
        known, was, block = opened.metadata, os.pread(fd, len(data), at), opened.block
        assert was != data
        if not is_known:
            unknown = {key: value for key, value in known.items() if key != "structure_digest"}
            block = superblock.write(fd, block, {**unknown})
        os.pwrite(fd, data, at)
        try:
            yield
        finally:
            os.pwrite(fd, was, at)
            if not is_known:
                superblock.write(fd, block, known)


def _is_found(scene: Scene, at: int, data: bytes) -> None:
    scene.launch(*_PLAIN)
    with _changed(scene, at, data):
        scene.site.run("verify", scene.image, check=0)
        assert scene.prove(4)["data"]["reason"]
    scene.prove(0)


@pytest.mark.parametrize("name", _TORN)
def test_a_torn_section_is_found(scene: Scene, name: str) -> None:
    """All but its beginning was not written: there is what the disk had before."""
    device = next(each for each in scene.devices if each.name.rpartition("/")[2] == name)
    begin = device.length // 64
    _is_found(scene, device.offset + begin, b"\xff" * (device.length - begin))


def test_a_flipped_bit_in_the_name_of_a_part_is_found(scene: Scene) -> None:
    chosen = random.Random(SEED)
    places = []
    with files.opened(scene.image) as fd:
        for device in scene.devices:
            state = os.pread(fd, device.length, device.offset)
            for match in _PART.finditer(state):
                at = chosen.randrange(match.start(1), match.end(1))
                places.append((device.offset + at, bytes([state[at] ^ 1 << chosen.randrange(8)])))
    assert len(places) > 5
    for at, data in chosen.sample(places, 6):
        _is_found(scene, at, data)


def test_of_other_data_only_a_digest_knows(scene: Scene) -> None:
    """QEMU loads a wrong value as it is; where there is a digest, no QEMU is even started."""
    scene.launch(*_PLAIN)
    device = next(each for each in scene.devices if each.name.endswith("usb-ptr"))
    at = device.offset + device.length - 1
    with files.opened(scene.image) as fd:
        flipped = bytes([os.pread(fd, 1, at)[0] ^ 1])
    with _changed(scene, at, flipped, is_known=True):
        assert scene.prove(6)["id"] == "image.corrupt"
    with _changed(scene, at, flipped):
        scene.prove(0)


_REFUSED = {
    "vfio": (["-device", "vfio-pci,host=00:00.0"], "vfio-pci"),
    "tpm": (["-tpmdev", "emulator,id=t,chardev=c0", "-device", "tpm-crb,tpmdev=t"], "tpm"),
    "config": (["-readconfig", "/nonexistent"], "-readconfig"),
}


@pytest.mark.parametrize(("words", "named"), _REFUSED.values(), ids=_REFUSED.keys())
def test_what_cannot_be_proven_is_refused(scene: Scene, words: list[str], named: str) -> None:
    scene.launch(*_PLAIN, *words)
    error = scene.prove(3)
    assert error["id"] == "check.not_provable"
    assert named in error["message"]


def test_the_recorded_command_needs_trust(scene: Scene) -> None:
    scene.site.add_guest("web01", scene.guest.qmp)
    assert scene.prove(3)["id"] == "check.no_destination"
    assert scene.prove(0, "--trust-recorded-command")["proven"] is True


def test_all_images_by_another_qemu(site: cli.Site, tmp_path: Path) -> None:
    """A table: each image, and the reason of what that QEMU does not load."""
    site.run("prove", "--all", check=2)
    for name, words in (("web01", []), ("web02", ["-device", "virtio-rng-pci"])):
        with saved(site, *words, name=name, machine=_MACHINE):
            pass
    old = _program(tmp_path, _WITHOUT.format(qemu=qemu.BINARY))
    found = site.run("prove", "--all", "--with", str(old), check=4)
    first, second = found.stdout.splitlines()[1:3]
    assert {first.split()[0], second.split()[0]} == {"yes", "NO"}
    assert "virtio-rng-pci" in found.stdout
    both = site.run("prove", "--all", "--with", str(old), "--json", check=4).json()["images"]
    assert sorted(each["proven"] for each in both) == [False, True]
    site.run("prove", check=2)
    site.run("prove", "--all", "web01.mapsave", check=2)


# A QEMU that does not know a device.
_WITHOUT = """case "$*" in *virtio-rng-pci*)
echo "'virtio-rng-pci' is not a valid device model name" >&2; exit 1;; esac
exec {qemu} "$@\""""


def _program(directory: Path, script: str) -> Path:
    path = directory / "qemu-system-other"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_another_qemu(scene: Scene, tmp_path: Path) -> None:
    scene.launch(*_PLAIN)
    fails = _program(tmp_path, "echo this one has no such machine >&2; exit 1")
    error = scene.prove(4, "--with", str(fails))
    assert error["id"] == "proof.failed"
    assert "this one has no such machine" in error["data"]["reason"]
    works = _program(tmp_path, f'exec {qemu.BINARY} "$@"')
    scene.prove(0, "--with", str(works))
    scene.prove(2, "--with", str(tmp_path / "none"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_nothing_outlives_mapsave(scene: Scene, tmp_path: Path, number: signal.Signals) -> None:
    """However it ends, and also while QEMU is not up yet."""
    scene.launch(*_PLAIN)
    pids = tmp_path / "pid"
    hangs = _program(tmp_path, f"echo $$ >>{pids}; exec sleep 1000")
    with scene.site.start("prove", scene.image, "--with", str(hangs)) as process:
        wait.until(lambda: pids.exists() and pids.read_text(), what="the throwaway QEMU")
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(wait.LONG) == (9 if number == signal.SIGTERM else -number)
        assert time.monotonic() - began < 5
    gone = Path("/proc", pids.read_text().strip())
    wait.until(lambda: not gone.exists(), timeout=10, what="its end")
    proofs = scene.site.state / "proofs"
    wait.until(lambda: not list(proofs.iterdir()), timeout=10, what="the end of its directory")


@pytest.mark.root
def test_qemu_changes_its_user(scene: Scene) -> None:
    scene.launch(*_PLAIN, "-run-with", "user=65534:65534")
    scene.prove(0)


@pytest.mark.root
def test_qemu_is_started_as_another_user(scene: Scene) -> None:
    """The place of its monitor is the user's; to read the image needs leave."""
    scene.launch(*_PLAIN)
    launch = scene.site.guests["web01"]["launch"]
    under = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    scene.site.add_guest("web01", scene.guest.qmp, launch=[*under, *launch])
    error = scene.prove(3)
    assert error["id"] == "check.not_provable"
    assert "may not read" in error["message"]
    mode = scene.image.stat().st_mode
    scene.image.chmod(0o644)
    try:
        scene.prove(0)
    finally:
        scene.image.chmod(mode)


def test_the_guest_is_left_alone(site: cli.Site, tmp_path: Path) -> None:
    """While it runs with its disk, its sockets, its files: none is opened, locked or taken over."""
    disk, serial, agent, pidfile = (tmp_path / name for name in ("disk", "serial", "agent", "pid"))
    disk.write_bytes(bytes(4 * MIB))
    words = ["-blockdev", f"driver=file,node-name=f,filename={disk}", "-serial", f"file:{serial}"]
    words += ["-device", "virtio-blk-pci,drive=f,id=b,bootindex=1"]
    words += ["-chardev", f"socket,id=c0,path={agent},server=on,wait=off", *_CONSOLE[2:]]
    words += ["-pidfile", str(pidfile)]
    with qemu.guest(site, "web01", *words, machine=_MACHINE, paused=False) as guest:

        def has_read() -> bool:
            (found,) = guest.control.execute("query-blockstats")
            return bool(found["stats"]["rd_operations"])

        # The ring of virtio is compared with what RAM has of it.
        wait.until(has_read, what="the firmware to read from the disk")
        site.run("save", "web01", "-o", "it", "--then", "resume", check=0)
        every = (disk, serial, agent, pidfile)
        here = [each.stat().st_ino for each in every]
        content, changed = serial.read_bytes(), disk.stat().st_mtime_ns
        done = site.run("prove", "it", "--json", check=0).json()
        assert any(name.endswith("/virtio-blk") for name in done["devices"])
        assert len(done["replaced"]) == 3
        assert [each.stat().st_ino for each in every] == here
        assert (serial.read_bytes(), disk.stat().st_mtime_ns) == (content, changed)
        assert pidfile.read_text().strip() == str(guest.pid)
        assert guest.status() == "running"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(agent))  # it is the guest that listens


def _interfaces() -> set[str]:
    """Return the host's network interfaces, but for those of guests, which go when they like."""
    return {name for name in os.listdir("/sys/class/net") if not name.startswith("mps")}


@pytest.mark.root
@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_is_of_the_proof_alone(site: cli.Site, queues: int) -> None:
    """Without one QEMU refuses what was saved beside one: "requires vnet_hdr=on"."""
    tap = f"tap,id=n0,ifname=mps{os.getpid()},script=no,downscript=no,queues={queues}"
    device = "virtio-net-pci,netdev=n0" + (",mq=on" if queues > 1 else "")
    with saved(site, "-netdev", tap, "-device", device, machine=_MACHINE) as scene:
        before = _interfaces()
        done = site.run("prove", scene.image, "--json", check=0).json()
        assert done["replaced"] == ["netdev n0: tap by a tap of its own"]
        assert _interfaces() == before
        launch = [f"{each},vnet_hdr=off" if each == tap else each for each in scene.guest.argv]
        site.add_guest("web01", scene.guest.qmp, launch=launch)
        error = site.run("prove", scene.image, "--json", check=4).error("proof.failed")
        # QEMU 11.1 finds it in the configuration of the PCI device, where it has several queues.
        assert re.search("virtio-net|pci config", error["data"]["qemu"])


def test_it_costs_the_same_for_any_ram(site: cli.Site) -> None:
    """Of a guest with more RAM than the host has, which is mapped from the image."""
    backend = "memory-backend-ram,id=pc.ram,size=64G,reserve=off"
    words = ["-object", backend, "-machine", "memory-backend=pc.ram"]
    with qemu.guest(site, "web01", *words, machine=_MACHINE, memory="64G") as guest:
        guest.ram.write("pc.ram", 33 << 30, b"far away")
        site.run("save", "web01", "-o", "large", check=0)
        guest.wait()
    done = site.run("prove", "large", "--json", check=0).json()
    assert done["ram_bytes"] > 64 << 30
    assert done["phases_s"]["load"] < 5


def test_an_emulated_guest(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "16M", "pattern": "fragmented"})
    site.run("save", "toy", "-o", "toy", check=0)
    done = site.run("prove", "toy", "--json", check=0).json()
    assert (done["guest"], done["replaced"], done["warnings"]) == ("toy", [], [])
    site.run("prove", "toy", "--with", qemu.BINARY, "--json", check=2)
