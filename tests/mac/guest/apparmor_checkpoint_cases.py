"""AppArmor: a checkpoint of a confined guest, whose profile has its RAM file."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, memory, patterns, ram
from tests.mac.guest import apparmor_guests as guests


@pytest.mark.unconfined
def test_checkpoint_of_a_confined_guest(on_xfs: cli.Site, tmp_path: Path) -> None:
    site, image = on_xfs, on_xfs.images / "one"
    file = site.images / "web01.ram"
    file.touch(0o600)
    os.truncate(file, 32 << 20)
    shared = memory.from_file(file, "32M", shared=True)
    with (
        guests.profile(rules=f'"{file}" rw,') as profile,
        guests.running(profile, *shared, ram=patterns.sparse) as guest,
    ):
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy=guests.POLICY)
        before = guest.snapshot_ram(tmp_path / "before")
        done = site.run("checkpoint", "web01", "--image", "one", "--json", check=0).json()
        assert done["checkpoint"]["shared_bytes"] > 0
        ram.assert_same(before, guest.ram)
        guest.kill()
        guest.wait()
        assert profile.rules() == []
        file.unlink()
        file.touch(0o600)
        os.truncate(file, 32 << 20)
        site.run("restore", image, check=0)
        with guest.successor() as restored:
            assert guests.context_of(restored.pid) == "qemu-web01 (enforce)"
            ram.assert_same(before, restored.ram)
    assert guests.refusals("web01.ram") == []


@pytest.mark.unconfined
def test_ram_file_that_mapsave_makes_is_done_without(on_xfs: cli.Site, tmp_path: Path) -> None:
    """It has no name, and the kernel keeps such a file from a QEMU in a profile."""
    site, image = on_xfs, on_xfs.images / "one"
    site.settings["memory"] = {"shared_file": "auto"}
    with guests.profile() as profile, guests.running(profile, ram=patterns.sparse) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy=guests.POLICY)
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", "web01", "--image", "one", check=0)
        guest.wait()
        done = site.run("restore", image, "--json", check=0).json()
        assert done["shared_file"] is False
        assert done["reasons"]["shared_file"]
        with guest.successor() as restored:
            assert guests.context_of(restored.pid) == "qemu-web01 (enforce)"
            ram.assert_same(before, restored.ram)
