"""Once an image has its name nothing rolls back; what ends in ``.partial`` is partial."""

import dataclasses
import os
import shutil
import sys
from typing import Any

import pytest
from mapsave.image import image, store, superblock
from mapsave.image.superblock import State

from tests.faults import struck
from tests.faults.slow import IMAGE, NAME
from tests.kit import cli, qemu

SAVE = ("save", NAME, "--image", IMAGE, "--json")


def failing(site: cli.Site, what: str, *arguments: str) -> cli.Result:
    """Run ``mapsave`` on a disk that fails; see ``failing.py``."""
    command = [sys.executable, "-m", "tests.faults.failing", what]
    return site.run(*arguments, command=command)


def _line(result: cli.Result) -> dict[str, Any]:
    (line,) = result.json()["operations"]
    return dict(line)


@pytest.mark.parametrize("step", ["complete", "commit"])
def test_a_recovery_whose_rename_may_be_lost_leaves_the_guest_paused(
    site: cli.Site, guest: qemu.Qemu, step: str
) -> None:
    """Twice: at the rename, and at the next try, which finds the image under its name."""
    struck.run(site, "after", step, "KILL", *SAVE)
    for _ in range(2):
        line = _line(failing(site, "directory", "recover", "--json"))
        assert line["error"]["id"] == "save.commit"
        assert guest.status() == "postmigrate"
        assert struck.states(site) == {IMAGE: "saved"}
        assert struck.journals(site)
    assert _line(site.run("recover", "--json", check=0))["outcome"] == "image committed"
    guest.wait()
    assert not struck.journals(site)


@pytest.mark.parametrize("step", ["commit", "committed"])
def test_an_image_that_cannot_be_read_is_not_taken_for_none(
    site: cli.Site, guest: qemu.Qemu, step: str
) -> None:
    """Neither is the guest resumed beside it, nor is it ended."""
    struck.run(site, "after", "committed", "KILL", *SAVE)
    (journal,) = struck.journals(site)
    if step == "commit":
        struck.cut(journal, step)
    path = site.images / IMAGE
    good = path.read_bytes()[: 2 * superblock.SLOT_SIZE]
    with path.open("r+b") as file:
        file.write(superblock.MAGIC + bytes(2 * superblock.SLOT_SIZE - 8))
    line = _line(site.run("recover", "--json", check=4))
    assert "cannot be read" in line["error"]["message"]
    assert "'cont'" in line["error"]["hint"]
    assert guest.status() == "postmigrate"
    with path.open("r+b") as file:
        file.write(good)
    assert _line(site.run("recover", "--json", check=0))["outcome"] == "image committed"
    guest.wait()


def test_an_image_that_went_before_its_step_was_recorded(site: cli.Site, guest: qemu.Qemu) -> None:
    """It may be restored elsewhere, so the guest waits for its owner's word."""
    struck.run(site, "after", "committed", "KILL", *SAVE)
    struck.cut(struck.journals(site)[0], "commit")
    (site.images / IMAGE).rename(site.directory / "elsewhere")
    line = _line(site.run("recover", "--json", check=4))
    assert "may have been committed" in line["error"]["message"]
    assert guest.status() == "postmigrate"
    guest.control.execute("cont")
    assert _line(site.run("recover", "--json", check=0))["outcome"] == "save rolled back"
    assert guest.status() == "running"


def test_an_image_directory_that_is_not_mounted(site: cli.Site, guest: qemu.Qemu) -> None:
    """Its empty mount point is there: the image is not taken for one that was moved away."""
    struck.run(site, "after", "committed", "KILL", *SAVE)
    away = site.images.with_name("away")
    site.images.rename(away)
    site.images.mkdir()
    line = _line(site.run("recover", "--json", check=3))
    assert line["error"]["id"] == "check.directory"
    assert "is its file system mounted?" in line["error"]["message"]
    assert f"mount '{site.images}', then run 'mapsave recover'" in line["error"]["hint"]
    assert guest.status() == "postmigrate"
    site.images.rmdir()
    away.rename(site.images)
    assert _line(site.run("recover", "--json", check=0))["outcome"] == "image committed"
    guest.wait()


@pytest.mark.parametrize("name", [IMAGE, "n" * 250])
@pytest.mark.parametrize("form", ["whole", "truncated"])
def test_what_ends_in_partial_is_partial(
    site: cli.Site, guest: qemu.Qemu, name: str, form: str
) -> None:
    """Its slot says saved: it is listed, inspected, verified and restored as a partial image."""
    struck.run(site, "after", "commit", "KILL", "save", NAME, "--image", name)
    (journal,) = struck.journals(site)
    journal.unlink()
    with store.directory(site.images) as held, image.adopting(held.fd, name) as partial:
        size = os.fstat(partial.fd).st_size
        saved = dataclasses.replace(partial.block, state=State.SAVED, file_length=size)
        superblock.write(partial.fd, saved)
        if form == "truncated":
            os.truncate(partial.fd, size - 1)
    (path,) = struck.partials(site)
    link = site.directory / "link"
    link.symlink_to(path)
    assert struck.states(site) == {path.name: "partial"}
    for command in ("verify", "restore"):
        for place in (path, link):
            site.run(command, place, check=6)
    if form == "whole":
        assert site.run("inspect", path, "--json", check=0).json()["state"] == "partial"
    guest.control.execute("cont")
    done = site.run("recover", "--json", check=0).json()
    assert (done["operations"], done["swept"]) == ([], [str(path)])
    assert guest.status() == "running"
    site.run("save", NAME, "--image", name, check=0)
    assert struck.states(site) == {name: "saved"}


def test_a_partial_image_that_cannot_be_removed_keeps_the_journal(
    site: cli.Site, guest: qemu.Qemu
) -> None:
    """Recovery removes it later, and leaves the guest alone, which was restored already."""
    result = failing(site, "read-only", *SAVE)
    assert result.returncode == 4, result
    error = result.error()
    assert "could not be removed" in error["message"]
    assert "mapsave recover" in error["hint"]
    assert guest.status() == "running"
    assert struck.partials(site)
    (journal,) = struck.journals(site)
    guest.control.execute("stop")
    line = _line(site.run("recover", "--json", check=0))
    assert line["interrupted_at"] == "tidy"
    assert guest.status() == "paused"
    assert not struck.partials(site)
    assert not journal.exists()


@pytest.mark.parametrize("then", ["quit", "resume"])
def test_a_journal_that_cannot_be_removed_is_a_warning(
    site: cli.Site, guest: qemu.Qemu, then: str
) -> None:
    result = failing(site, "journal-end", *SAVE, "--then", then)
    assert result.returncode == 0, result
    (warning,) = result.json()["warnings"]
    assert "cannot remove the journal" in warning
    if then == "quit":
        guest.wait()
        restored = failing(site, "journal-end", "restore", IMAGE, "--json")
        assert restored.returncode == 0, restored
        assert "cannot remove the journal" in restored.json()["warnings"][0]
        with guest.successor() as living:
            recovered = failing(site, "journal-end", "recover", "--json")
            assert recovered.returncode == 0, recovered
            lines = recovered.json()["operations"]
            assert all("cannot remove the journal" in each["warnings"][-1] for each in lines)
            assert len(lines) == 2
            assert living.status() == "running"
    else:
        guest.control.execute("stop")  # its owner's: recovery leaves it so
    site.run("recover", check=0)
    assert not struck.journals(site)
    if then == "resume":
        assert guest.status() == "paused"
        shutil.rmtree(site.images)
