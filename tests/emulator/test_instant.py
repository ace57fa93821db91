"""The emulator maps its RAM from an image as QEMU does, so that all of it can be tried without."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.kit import cli, emulated, processes, qmp, storage, wait

MIB = 1 << 20


def _socket(site: cli.Site, name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return site.state / "emulated" / f"{digest}.qmp"


def _changed(socket: Path, directory: Path, before: str) -> bool:
    return emulated.ram_of(socket, directory / "now") != before


@pytest.mark.parametrize("live", [False, True], ids=["paused", "live"])
def test_mapped_and_saved_again(site: cli.Site, tmp_path: Path, live: bool) -> None:
    site.add_guest("toy", emulator={"memory": "16M", "pattern": "fragmented", "writer": live})
    socket = _socket(site, "toy")
    try:
        site.run("save", "toy", "-o", "first", "--then", "leave", check=0)
        before = emulated.ram_of(socket, tmp_path / "before")
        emulated.end(socket)
        content = (site.images / "first").read_bytes()[MIB:]

        done = site.run("restore", "first", "--instant", "on", "--paused", "--json", check=0).json()
        assert done["instant"] is True
        maps = Path(f"/proc/{done['pid']}/maps").read_text()
        assert f"{site.images}/first" in maps
        assert emulated.ram_of(socket, tmp_path / "mapped") == before
        if live:
            with qmp.connect(socket) as client:
                client.execute("cont")
            wait.until(lambda: _changed(socket, tmp_path, before), what="the guest's writer")
        how = ["--live"] if live else []
        site.run("save", "toy", "-o", "second", "--then", "leave", *how, check=0)
        again = emulated.ram_of(socket, tmp_path / "again")
        assert (again == before) is not live
        emulated.end(socket)
        assert (site.images / "first").read_bytes()[MIB:] == content

        for way in ("on", "off"):
            site.run("restore", "second", "--again", "--instant", way, "--paused", check=0)
            assert emulated.ram_of(socket, tmp_path / way) == again
            emulated.end(socket)
    finally:
        emulated.end(socket)


def test_a_launch_by_another_command(site: cli.Site, tmp_path: Path) -> None:
    """It gets the options that QEMU gets."""
    site.settings["launch_environment"] = ["PATH", processes.MARK, "PYTHONPATH"]
    with emulated.guest(site, "web", size=16 * MIB, paused=True) as socket:
        before = emulated.ram_of(socket, tmp_path / "before")
        site.run("save", "web", "-o", "it", check=0)
        done = site.run("restore", "it", "--instant", "on", "--json", check=0).json()
        assert done["instant"] is True
        assert emulated.ram_of(socket, tmp_path / "mapped") == before


def test_another_guest_from_an_image_in_use(site: cli.Site, tmp_path: Path) -> None:
    """Each has memory of its own, though what neither has changed is there once."""
    memory = {"memory": "16M", "pattern": "fragmented"}
    site.add_guest("toy", emulator=memory)
    site.add_guest("twin", emulator={**memory, "writer": True})
    toy, twin = _socket(site, "toy"), _socket(site, "twin")
    try:
        site.run("save", "toy", "-o", "it", "--then", "leave", check=0)
        before = emulated.ram_of(toy, tmp_path / "before")
        emulated.end(toy)
        site.run("restore", "it", "--instant", "on", "--paused", check=0)
        site.run("restore", "it", "--instant", "on", "--guest", "twin", check=3)
        words = ("restore", "it", "--instant", "on", "--guest", "twin", "--again", "--run")
        site.run(*words, check=0)
        (line,) = site.run("list", "--json", check=0).json()["images"]
        assert sorted(each["guest"] for each in line["in_use_by"]) == ["toy", "twin"]
        wait.until(lambda: _changed(twin, tmp_path, before), what="the other guest's writer")
        assert emulated.ram_of(toy, tmp_path / "after") == before
    finally:
        emulated.end(toy)
        emulated.end(twin)


@pytest.mark.root
def test_a_file_system_whose_files_are_not_mapped(site: cli.Site, tmp_path: Path) -> None:
    site.add_guest("toy", emulator={"memory": "16M", "pattern": "sparse"})
    socket = _socket(site, "toy")
    try:
        site.run("save", "toy", "-o", "it", check=0)
        with storage.without_direct_io(tmp_path) as place:
            path = shutil.copy(site.images / "it", place)
            found = site.run("check", path, "--json", check=0).json()["instant"]
            assert (found["is_possible"], "file system" in found["why_not"][0]) == (False, True)
            error = site.run("restore", path, "--instant", "on", "--json", check=3).error()
            assert (error["id"], "file system" in error["message"]) == ("check.instant", True)
            done = site.run("restore", path, "--json", check=0).json()
            assert (done["instant"], "ext4" in done["reasons"]["instant"]) == (False, True)
            emulated.end(socket)
    finally:
        emulated.end(socket)
