"""A guest that was booted between its save and its restore: its disks are not as they were."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.kit import cli, qemu, wait
from tests.qemu.scene import saved, state_of

_CHANGED = "was changed at"


def _disk(path: Path, kind: str) -> list[str]:
    """Make a disk of that format; return the arguments of a guest that has it as libvirt would."""
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "1M"], check=True)
    os.utime(path, (1e9, 1e9))
    lazy = ",lazy-refcounts=on" if kind == "qcow2" else ""
    return [
        *("-blockdev", f"driver=file,node-name=file,filename={path},auto-read-only=on"),
        *("-blockdev", f"driver={kind},node-name=disk,file=file{lazy}"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]


def _writing(path: Path, kind: str) -> list[str]:
    """Do as ``_disk``, with a boot sector that writes the disk's second one for as long as it runs.

    start: mov ax,0x0301; mov cx,2; xor dh,dh; int 0x13; jmp start (a write, by the firmware).
    """
    arguments = _disk(path, kind)
    boot = path.with_name("boot")
    code = bytes.fromhex("b80103 b90200 30f6 cd13 ebf4")
    boot.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    convert = ["qemu-img", "convert", "-n", "-f", "raw", "-O", kind, boot, path]
    subprocess.run(convert, check=True)
    os.utime(path, (1e9, 1e9))
    return arguments


def _until_written(path: Path) -> None:
    wait.until(lambda: path.stat().st_mtime > 1e9, what="a write of the guest")


def _write(path: Path, kind: str) -> None:
    """Change a disk as a guest does that was booted: its QEMU writes, and exits."""
    command = ["qemu-io", "-f", kind, "-c", "write -P 1 0 64k", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _warnings(done: dict[str, Any]) -> list[str]:
    return list(done["warnings"])


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_that_is_as_it_was_is_no_warning(site: cli.Site, tmp_path: Path, kind: str) -> None:
    """Its guest writes to it until it is saved, and runs on after the restore."""
    path = tmp_path / "disk"
    with qemu.guest(site, "web01", *_writing(path, kind), paused=False) as guest:
        _until_written(path)
        site.run("save", "web01", "--image", "x", check=0)
        guest.wait()
        assert _warnings(site.run("check", "x", "--json", check=0).json()) == []
        done = site.run("restore", "x", "--json", check=0).json()
        with guest.successor():
            assert _warnings(done) == []
            os.utime(path, (1e9, 1e9))
            _until_written(path)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_that_was_written_to_is_a_warning(site: cli.Site, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "my disk"
    with saved(site, *_disk(path, kind)) as scene:
        _write(path, kind)
        (said,) = _warnings(site.run("check", scene.image, "--json", check=0).json())
        assert _CHANGED in said
        assert str(path) in said
        assert "warning: " in site.run("check", scene.image, check=0).stdout
        done = site.run("restore", scene.image, "--json", check=0)
        with scene.guest.successor():
            assert _warnings(done.json()) == [said]
            assert said in done.stderr
        assert state_of(site, scene.image) == "restored"
        # Its own guest has changed them by then.
        assert _warnings(site.run("check", scene.image, "--json", check=0).json()) == []


def test_the_same_guest_booted_in_between_is_a_warning(site: cli.Site, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    arguments = _writing(path, "raw")
    with saved(site, *arguments) as scene:  # it was never started
        assert path.stat().st_mtime == 1e9
        with qemu.running(*arguments, paused=False) as booted:
            _until_written(path)
            booted.kill()
        (said,) = _warnings(site.run("check", scene.image, "--json", check=0).json())
        assert _CHANGED in said


@pytest.mark.parametrize("then", ["quit", "leave"])
def test_a_save_that_was_recovered_records_them_too(
    site: cli.Site, tmp_path: Path, then: str
) -> None:
    path = tmp_path / "disk"
    with qemu.running(*_disk(path, "raw"), paused=False) as guest:
        save = ("save", guest.address, "--image", "x", "--then", then)
        struck.run(site, "before", "commit", "KILL", *save)
        site.run("recover", check=0)
        assert _warnings(site.run("check", "x", "--json", check=0).json()) == []
        _write_beside(path)
        (said,) = _warnings(site.run("check", "x", "--json", check=0).json())
        assert _CHANGED in said


def test_a_copy_that_keeps_its_time_is_no_warning(site: cli.Site, tmp_path: Path) -> None:
    path, copy = tmp_path / "disk", tmp_path / "copy"
    with saved(site, *_disk(path, "raw")) as scene:
        shutil.copy2(path, copy)
        copy.replace(path)
        assert _warnings(site.run("check", scene.image, "--json", check=0).json()) == []


def test_an_older_copy_of_a_disk_is_a_warning(site: cli.Site, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with saved(site, *_disk(path, "raw")) as scene:
        os.utime(path, (9e8, 9e8))
        (said,) = _warnings(site.run("check", scene.image, "--json", check=0).json())
        assert "an older copy" in said


def test_a_disk_that_is_gone_cannot_be_compared(site: cli.Site, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with saved(site, *_disk(path, "raw")) as scene:
        path.unlink()
        (said,) = _warnings(site.run("check", scene.image, "--json", check=0).json())
        assert "No such file" in said


def test_an_image_whose_guest_went_on_warns_of_its_disks(site: cli.Site, tmp_path: Path) -> None:
    """Whatever they are: a time that was recorded would be one at which it was running already."""
    path = tmp_path / "disk"
    with qemu.guest(site, "web01", *_disk(path, "raw"), paused=False) as guest:
        site.run("save", "web01", "--image", "x", "--then", "resume", check=0)
        (said,) = _warnings(site.run("check", "x", "--json", check=0).json())
        assert "kept running after this save at" in said
        guest.kill()
        done = site.run("restore", "x", check=0)
        with guest.successor():
            assert said in done.stdout


def test_an_image_whose_guest_stayed_paused_says_nothing(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(*_disk(tmp_path / "disk", "raw")) as guest:
        site.run("save", guest.address, "--image", "x", "--then", "resume", check=0)
        assert _warnings(site.run("check", "x", "--json", check=0).json()) == []


def _write_beside(path: Path) -> None:
    """Change a disk that QEMU has locked."""
    with path.open("r+b") as disk:
        disk.write(b"x")
