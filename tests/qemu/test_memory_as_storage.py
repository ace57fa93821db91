"""Memory with contents of its own: files, flash, shared memory. It is restored, or not saved."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, patterns, qemu, ram

NAME = "web01"
IMAGE = "one.mapsave"
MIB = 1 << 20
_SIZE = 16 * MIB
_ROOM = ("-m", "64M,maxmem=1G,slots=4")


def _file(directory: Path, *, used: int = _SIZE // 2, name: str = "disk") -> Path:
    """Make a file whose first ``used`` bytes are not zero, and the rest holes."""
    path = patterns.write(directory / name, used)
    os.truncate(path, _SIZE)
    return path


def _backed(path: Path, device: str, more: str = ",share=on") -> list[str]:
    backend = f"memory-backend-file,id=n,size=16M,mem-path={path}{more}"
    return [*_ROOM, "-object", backend, "-device", device]


DEVICES = {
    "virtio-pmem": ("virtio-pmem-pci,memdev=n", "pc"),
    "nvdimm": ("nvdimm,memdev=n", "pc,nvdimm=on"),
    "dimm": ("pc-dimm,memdev=n", "pc"),
    "ivshmem": ("ivshmem-plain,memdev=n,master=on", "pc"),
}
IN_THE_IMAGE = [name for name in DEVICES if name != "virtio-pmem"]


def _save(site: cli.Site, guest: qemu.Qemu) -> None:
    site.run("save", guest.address, "--image", IMAGE, check=0)


def _refused(site: cli.Site, guest: qemu.Qemu, kind: str) -> str:
    into = ("--again", "--into", guest.address, "--json")
    error = site.run("restore", IMAGE, *into, check=3).error(kind)
    assert "truncate" not in error["hint"]
    assert guest.status() == "inmigrate"
    return str(error["message"] + error["hint"])


@pytest.mark.parametrize("kind", DEVICES)
def test_with_its_contents_unchanged(site: cli.Site, tmp_path: Path, kind: str) -> None:
    """The file is as the guest left it: nothing stands against a restore, and nothing is lost."""
    path = _file(tmp_path)
    contents = path.read_bytes()
    device, machine = DEVICES[kind]
    arguments = _backed(path, device)
    with qemu.running(*arguments, machine=machine) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        _save(site, guest)
    with qemu.running(*arguments, machine=machine, incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, "--paused", check=0)
        ram.assert_same(before, restored.ram)
    assert path.read_bytes() == contents


@pytest.mark.parametrize("kind", IN_THE_IMAGE)
def test_with_other_contents(site: cli.Site, tmp_path: Path, kind: str) -> None:
    """What another wrote where the image has no page would stay; a new file takes all."""
    path = _file(tmp_path)
    device, machine = DEVICES[kind]
    with qemu.running(*_backed(path, device), machine=machine) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        _save(site, guest)
    with path.open("r+b") as file:
        file.seek(_SIZE - 5000)
        file.write(b"newer")
    with qemu.running(*_backed(path, device), machine=machine, incoming=True) as restored:
        words = _refused(site, restored, "check.destination_not_zero")
        assert f"at page {(_SIZE - 5000) // 4096}," in words
        assert "a new, empty file instead" in words
    assert path.read_bytes().endswith(b"newer".ljust(5000, b"\0"))
    new = _file(tmp_path, used=0, name="new")
    with qemu.running(*_backed(new, device), machine=machine, incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, "--paused", check=0)
        ram.assert_same(before, restored.ram)


def test_a_part_of_a_file(site: cli.Site, tmp_path: Path) -> None:
    """What is before the backend's offset is not its own."""
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(MIB) + bytes(_SIZE))
    arguments = _backed(path, "nvdimm,memdev=n", ",share=on,offset=1M")
    with qemu.running(*arguments, machine="pc,nvdimm=on") as guest:
        _save(site, guest)
    with qemu.running(*arguments, machine="pc,nvdimm=on", incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, "--paused", check=0)
    with path.open("r+b") as file:
        file.seek(MIB + 8192)
        file.write(b"newer")
    with qemu.running(*arguments, machine="pc,nvdimm=on", incoming=True) as restored:
        assert "at page 2," in _refused(site, restored, "check.destination_not_zero")


@pytest.mark.parametrize("kind", ["nvdimm", "dimm", "ivshmem"])
def test_read_only_memory_is_not_saved(site: cli.Site, tmp_path: Path, kind: str) -> None:
    """QEMU would save it, and dies when it loads it."""
    device, machine = DEVICES[kind]
    device += ",unarmed=on" if kind == "nvdimm" else ""
    arguments = _backed(_file(tmp_path), device, ",share=on,readonly=on")
    with qemu.running(*arguments, machine=machine, paused=False) as guest:
        refused = site.run("save", guest.address, "--image", IMAGE, "--json", check=3)
        error = refused.error("check.not_migratable")
        assert "read-only memory" in error["message"]
        checked = site.run("check", guest.address, "--json", check=3).json()
        (line,) = [each for each in checked["checks"] if not each["ok"]]
        assert line["check"] == "memory"
        assert guest.status() == "running"
    assert not list(site.images.iterdir())


def test_read_only_files_that_can_be_loaded(site: cli.Site, tmp_path: Path) -> None:
    """With rom=off QEMU has a private copy; into a read-only one it is not loaded."""
    path, machine = _file(tmp_path), "pc,nvdimm=on"
    device = "nvdimm,memdev=n,unarmed=on"
    private = _backed(path, device, ",share=off,readonly=on,rom=off")
    with qemu.running(*private, machine=machine) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        _save(site, guest)
    with qemu.running(*private, machine=machine, incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, "--paused", check=0)
        ram.assert_same(before, restored.ram)
    rom = _backed(path, device, ",share=on,readonly=on")
    with qemu.running(*rom, machine=machine, incoming=True) as restored:
        into = ("--again", "--into", restored.address, "--json")
        error = site.run("restore", IMAGE, *into, check=3).error("check.destination")
        assert "read-only" in error["message"]
        assert restored.alive()


# Flash that is loaded from a drive.


def _flash(code: Path, variables: Path) -> list[str]:
    drive = "if=pflash,format=raw"
    return [
        "-drive",
        f"{drive},unit=0,readonly=on,file={code}",
        "-drive",
        f"{drive},unit=1,file={variables}",
    ]


def _firmware(path: Path, fill: bytes) -> Path:
    """Make a MiB of flash whose beginning and end are used."""
    path.write_bytes(fill * (64 << 10) + bytes(MIB - (128 << 10)) + fill * (64 << 10))
    return path


def test_flash(site: cli.Site, tmp_path: Path) -> None:
    code, variables = (_firmware(tmp_path / name, b"\xf4") for name in ("code", "vars"))
    with qemu.running(*_flash(code, variables), machine="q35") as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        _save(site, guest)
    with qemu.running(*_flash(code, variables), machine="q35", incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, "--paused", check=0)
        ram.assert_same(before, restored.ram)
    newer = tmp_path / "newer"
    newer.write_bytes(b"\xf4" * (72 << 10) + bytes(MIB - (72 << 10)))  # 8,192 bytes more
    with qemu.running(*_flash(newer, variables), machine="q35", incoming=True) as restored:
        into = ("--again", "--into", restored.address, "--json")
        error = site.run("restore", IMAGE, *into, check=3).error("check.destination_not_zero")
        assert "system.flash0" in error["message"]
        assert "at page 16," in error["message"]
        assert "the same firmware files" in error["hint"]
    empty = [_firmware(tmp_path / name, b"\0") for name in ("no-code", "no-vars")]
    with qemu.running(*_flash(*empty), machine="q35", incoming=True) as restored:
        site.run("restore", IMAGE, "--again", "--into", restored.address, "--paused", check=0)
        ram.assert_same(before, restored.ram)
