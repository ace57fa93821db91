"""Images that cannot be marked as restored: they are noted in the state directory as well."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.faults.slow import IMAGE, NAME
from tests.kit import cli, inject, qemu, storage

pytestmark = pytest.mark.root


_NO_NOTE = inject.Rule("fsync", "errno", 5, path="/state/restored", count=-1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file system for images, which may be made read-only."""
    with storage.tmpfs(256 << 20, tmp_path) as found:
        yield found


@pytest.fixture
def guest(site: cli.Site, place: Path) -> Iterator[qemu.Qemu]:
    site.settings["images"] = str(place)
    with qemu.guest(site, NAME, memory="32M", paused=False) as found:
        site.run("save", NAME, "--image", IMAGE, check=0)
        found.wait()
        yield found


def _refused(site: cli.Site, *arguments: str | Path) -> dict[str, Any]:
    error = site.run("restore", *arguments, "--json", check=3).error("check.already_restored")
    return dict(error)


def test_an_image_on_a_read_only_file_system_is_restored_once(
    site: cli.Site, place: Path, guest: qemu.Qemu
) -> None:
    with storage.read_only(place):
        (warning,) = site.run("restore", IMAGE, "--json", check=0).json()["warnings"]
        assert "could not be marked as restored (Read-only file system)" in warning
        with guest.successor() as restored:
            assert restored.status() == "running"
            restored.kill()
            restored.wait()
        assert "according to the state directory" in _refused(site, IMAGE)["message"]
        for command in ("inspect", "verify"):
            assert site.run(command, IMAGE, "--json", check=0).json()["state"] == "restored"
        (line,) = site.run("list", "--json", check=0).json()["images"]
        assert line["state"] == "restored"
        site.run("restore", IMAGE, "--again", check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"
    # Now that the image can be written, it still says that it was never restored.
    _refused(site, IMAGE)


def test_a_copy_made_before_the_restore_is_the_same_guest(
    site: cli.Site, place: Path, guest: qemu.Qemu
) -> None:
    """Its disks have moved on by the restore of the other."""
    copy = place / "copy"
    shutil.copy(place / IMAGE, copy)
    assert site.run("restore", IMAGE, "--json", check=0).json()["warnings"] == []
    with guest.successor() as restored:
        restored.kill()
        restored.wait()
    _refused(site, copy)
    site.run("restore", copy, "--again", check=0)
    with guest.successor():
        pass


@pytest.mark.parametrize("where", ["before", "after"])
def test_recovery_notes_what_it_cannot_mark(
    site: cli.Site, place: Path, guest: qemu.Qemu, where: str
) -> None:
    """Killed right before or after the mark: the loaded guest and its image must not both live."""
    with storage.read_only(place):
        struck.run(site, where, "mark", "KILL", "restore", IMAGE)
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert "could not be marked" in line["warnings"][0]
        with guest.successor() as restored:
            assert restored.status() == "paused"
            restored.kill()
            restored.wait()
        _refused(site, IMAGE)


def test_neither_image_nor_state_directory_can_be_written(
    site: cli.Site, place: Path, guest: qemu.Qemu
) -> None:
    """The guest does not run, and the destination is ended."""
    with storage.read_only(place):
        result = site.run("restore", IMAGE, "--json", env=inject.environment(_NO_NOTE), check=5)
        error = result.error()
        assert "neither in the image (Read-only file system) nor in the state" in error["message"]
        assert not qemu_lives(guest)
        assert not struck.journals(site)
    assert not list((site.state / "restored").iterdir())
    site.run("restore", IMAGE, check=0)
    with guest.successor() as restored:
        assert restored.status() == "running"


def test_a_mark_that_may_not_be_durable_is_taken_back(site: cli.Site, guest: qemu.Qemu) -> None:
    """fsync(2) fails on both: what was written would be read all the same, but no guest runs."""
    rules = (_NO_NOTE, inject.Rule("fsync", "errno", 28, path=IMAGE, count=-1))
    result = site.run("restore", IMAGE, "--json", env=inject.environment(*rules), check=5)
    assert "neither in the image (No space left on device)" in result.error()["message"]
    assert not qemu_lives(guest)
    assert site.run("inspect", IMAGE, "--json", check=0).json()["state"] == "saved"
    site.run("restore", IMAGE, check=0)
    with guest.successor() as restored:
        assert restored.status() == "running"


def test_a_state_directory_that_cannot_be_written_is_a_warning(
    site: cli.Site, guest: qemu.Qemu
) -> None:
    result = site.run("restore", IMAGE, "--json", env=inject.environment(_NO_NOTE), check=0)
    (warning,) = result.json()["warnings"]
    assert "a copy of it would not be refused" in warning
    with guest.successor():
        _refused(site, IMAGE)


def test_a_disk_that_fails_at_the_mark(site: cli.Site, guest: qemu.Qemu) -> None:
    rule = inject.Rule("pwrite", "errno", 5, count=-1)
    result = site.run("restore", IMAGE, "--json", env=inject.environment(rule), check=0)
    (warning,) = result.json()["warnings"]
    assert "could not be marked as restored (Input/output error)" in warning
    with guest.successor():
        _refused(site, IMAGE)


def test_a_restore_that_fails_behind_its_mark_takes_the_note_back(
    site: cli.Site, place: Path, guest: qemu.Qemu
) -> None:
    with storage.read_only(place):
        result = struck.run(site, "after", "run", "child:KILL", "restore", IMAGE, "--json")
        assert result.returncode == 5, result
    assert not list((site.state / "restored").iterdir())
    site.run("restore", IMAGE, check=0)
    with guest.successor():
        pass


def test_a_stale_image_that_cannot_be_marked(site: cli.Site, place: Path) -> None:
    """The guest went on after its save, by its owner's hand."""
    site.settings["images"] = str(place)
    with qemu.guest(site, NAME, memory="32M", paused=False) as guest:
        struck.run(site, "after", "committed", "KILL", "save", NAME, "--image", IMAGE)
        guest.control.execute("cont")
        with storage.read_only(place):
            site.run("recover")  # which may have to wait until the disk can be written
        site.run("recover", check=0)
        assert guest.status() == "running"
        _refused(site, IMAGE)


def qemu_lives(guest: qemu.Qemu) -> bool:
    """Return whether a QEMU listens at the guest's monitor."""
    from mapsave.evacuation import guests

    return guests.listens(str(guest.qmp))
