"""Guests whose disks are files that are no longer where QEMU opened them."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, qemu, raw


def with_disk(path: Path, options: str = ",auto-read-only=on") -> list[str]:
    path.write_bytes(bytes(1 << 20))
    file = f"driver=file,node-name=file,filename={path}{options}"
    disk = "driver=raw,node-name=disk,file=file"
    return ["-blockdev", file, "-blockdev", disk, "-device", "virtio-blk-pci,drive=disk"]


def test_raw_a_disk_without_its_file_fails_the_save_at_its_end(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with qemu.running(*with_disk(disk), paused=False) as guest:
        disk.unlink()
        raw.configure(guest)
        guest.control.execute("migrate", uri=f"file:{tmp_path}/image")
        # The words of QEMU up to 10, and of 11.
        expected = ("Bad address", "Block inactivate failed during switchover")
        said = guest.wait_migration("failed")["error-desc"]
        assert any(words in said for words in expected), said


@pytest.mark.parametrize("options", [",auto-read-only=on", ""])
@pytest.mark.parametrize("how", ["gone", "another"])
def test_refused_until_the_file_is_back(
    site: cli.Site, tmp_path: Path, how: str, options: str
) -> None:
    disk, aside = tmp_path / "my disk", tmp_path / "aside"
    with qemu.running(*with_disk(disk, options), paused=False) as guest:
        disk.rename(aside)
        if how == "another":
            disk.write_bytes(bytes(1 << 20))
        before = guest.state()
        error = site.run("save", guest.address, "--image", "x", "--json", check=3).error(
            "check.not_migratable"
        )
        assert str(disk) in error["message"]
        assert guest.state() == before
        assert os.listdir(site.images) == []
        aside.rename(disk)
        site.run("save", guest.address, "--image", "x", check=0)


def test_a_read_only_one_does_not_matter(site: cli.Site, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    arguments = with_disk(disk, ",read-only=on")
    arguments[3] += ",read-only=on"
    with qemu.running(*arguments, paused=False) as guest:
        disk.unlink()
        site.run("save", guest.address, "--image", "x", check=0)
