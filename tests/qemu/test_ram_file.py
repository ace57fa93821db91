"""Guests whose RAM mapsave makes a shared file of: restored so, checkpointed, and nothing left."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.kit import cli, memory, outcomes, patterns, qemu, ram, reflinks, storage, wait
from tests.kit.storage import MIB
from tests.qemu.scene import saved, state_of

pytestmark = pytest.mark.root

NAME = "web01"
KINDS: list[storage.Kind] = ["xfs", "btrfs"]
_NOBODY = 65534
_GUESTS = {
    "main": ([], ["pc.ram"]),
    "shared": (memory.zeroed("32M"), ["m"]),
    "nodes": (memory.nodes("16M", "16M"), ["n0", "n1"]),
    "dimm": (memory.dimm("16M"), ["pc.ram", "d0"]),
}


@contextmanager
def _site(kind: storage.Kind, directory: Path, setting: str = "on") -> Iterator[cli.Site]:
    with reflinks.site_on(kind, directory) as site:
        site.settings["memory"] = {"shared_file": setting}
        yield site


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[cli.Site]:
    with _site(request.param, tmp_path) as site:
        yield site


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[cli.Site]:
    with _site("xfs", tmp_path) as site:
        yield site


def _restored(site: cli.Site, image: str | Path, *options: str) -> dict[str, Any]:
    return site.run("restore", image, *options, "--json", check=0).json()


def _free(site: cli.Site) -> int:
    """Return the free bytes of the site's file system, once it has freed what it was to free."""
    os.sync()
    room = os.statvfs(site.directory)
    return room.f_bfree * room.f_frsize


def _await_free(site: cli.Site, before: int) -> None:
    wait.until(lambda: _free(site) >= before - MIB, what="the space of the RAM file")


@pytest.mark.parametrize(("arguments", "blocks"), _GUESTS.values(), ids=_GUESTS.keys())
def test_restored_and_checkpointed(
    xfs: cli.Site, tmp_path: Path, arguments: list[str], blocks: list[str]
) -> None:
    _restored_twice(xfs, tmp_path, arguments, blocks)


def test_the_same_on_btrfs(tmp_path: Path) -> None:
    with _site("btrfs", tmp_path) as site:
        _restored_twice(site, tmp_path, *_GUESTS["main"])


def _restored_twice(
    place: cli.Site, tmp_path: Path, arguments: list[str], blocks: list[str]
) -> None:
    """Restore a guest, the second time from its checkpoint; images stay as they are."""
    with saved(place, *arguments, machine="q35", ram=patterns.sparse) as scene:
        contents = scene.image.read_bytes()[MIB:]
        done = _restored(place, scene.image)
        assert (done["instant"], done["shared_file"]) == (True, True)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
            (modes,) = {
                (each.st_mode, each.st_uid) for each in memory.unnamed_files(guest).values()
            }
            assert modes == (stat.S_IFREG | 0o600, 0)
            for name in blocks:
                guest.ram.write(name, 2 * MIB, b"the guest's own")
            before = guest.snapshot_ram(tmp_path / "before")
            taken = reflinks.checkpoint(place, "one")
            assert taken["checkpoint"]["written_bytes"] < 20 * MIB
            assert taken["checkpoint"]["shared_bytes"] > 0
            for name in blocks:
                guest.ram.write(name, 3 * MIB, b"changed since")
            guest.control.execute("quit")
            guest.wait()
        assert scene.image.read_bytes()[MIB:] == contents
        recorded = place.run("inspect", "one", "--json", check=0).json()["command"]["argv"]
        assert not any("/proc/" in word for word in recorded)
        _restored(place, "one")
        with scene.guest.successor() as guest:
            ram.assert_same(before, guest.ram)
            reflinks.checkpoint(place, "two")
        with qemu.running(*arguments, machine="q35", memory="32M", incoming=True) as plain:
            place.run("restore", "two", "--into", plain.address, "--paused", check=0)
            ram.assert_same(before, plain.ram)


def test_nothing_is_left_of_it(place: cli.Site) -> None:
    with saved(place, ram=patterns.dense) as scene:
        before = _free(place)
        names = sorted(path.name for path in place.images.iterdir())
        for end in ("quit", "kill"):
            _restored(place, scene.image, "--again")
            with scene.guest.successor() as guest:
                for at in range(0, 32 * MIB, MIB):
                    guest.ram.write("pc.ram", at, b"x" * MIB)
                (file,) = {Path(os.readlink(path)) for path in memory.unnamed_files(guest)}
                assert not file.exists()
                assert _free(place) < before - 16 * MIB
                if end == "kill":
                    guest.kill()
                else:
                    guest.control.execute("quit")
                guest.wait()
            _await_free(place, before)
        assert sorted(path.name for path in place.images.iterdir()) == names


@pytest.mark.parametrize(
    ("where", "step", "outcome"),
    [
        ("after", "launch", outcomes.UNDONE),
        ("after", "load", outcomes.UNDONE),
        ("after", "run", outcomes.RESTORED),
    ],
)
def test_killed(xfs: cli.Site, where: str, step: str, outcome: str) -> None:
    """A guest that lives on keeps its file, and can be checkpointed; of others nothing is left."""
    with saved(xfs, ram=patterns.dense) as scene:
        before = _free(xfs)
        struck.killed(xfs, where, step, "restore", str(scene.image), "--run")
        struck.recovered(xfs, outcome)
        if outcome == outcomes.UNDONE:
            _await_free(xfs, before)
            return
        with scene.guest.successor() as guest:
            assert memory.unnamed_files(guest)
            reflinks.checkpoint(xfs, "one")


def test_the_host_goes_down(xfs: cli.Site, tmp_path: Path) -> None:
    """What was on its disk then has no RAM file once it is mounted again."""
    with saved(xfs, ram=patterns.dense) as scene:
        before = _free(xfs)
        _restored(xfs, scene.image)
        with scene.guest.successor() as guest:
            for at in range(0, 32 * MIB, MIB):
                guest.ram.write("pc.ram", at, b"x" * MIB)
            assert _free(xfs) < before - 16 * MIB
            (backing,) = tmp_path.glob("xfs-*.img")
            disk = tmp_path / "disk"
            with storage.frozen(xfs.directory.parent):
                shutil.copyfile(backing, disk)
    with storage.mounted(disk, tmp_path / "again") as again:
        room = os.statvfs(again)
        assert room.f_bfree * room.f_frsize >= before - 4 * MIB
        assert (again / "site").is_dir()


def test_single_pages_are_written(place: cli.Site) -> None:
    """Not the large folios that QEMU's own file has, of which check warns."""
    pages = range(4096, 32 * MIB, MIB)
    with saved(place, ram=patterns.dense) as scene:
        _restored(place, scene.image, "--paused")
        with scene.guest.successor() as guest:
            for at in pages:
                guest.ram.read("pc.ram", at, 1)  # so that it is in QEMU's memory
            assert "for each page that changes, that page is written" in _detail(place)
            reflinks.checkpoint(place, "one")  # all is shared, so what is written is elsewhere
            (path,) = memory.unnamed_files(guest)
            with path.open("rb") as file:
                before = _places(file.fileno())
                for at in pages:
                    guest.ram.write("pc.ram", at, b"changed")
                os.fsync(file.fileno())
                assert len(_places(file.fileno()) - before) == len(pages)


def _places(fd: int) -> set[tuple[int, int]]:
    """Return where each page of the file is on the disk."""
    from mapsave.image import extents

    sure, unsure = extents.places(fd, 0, 1 << 40)
    assert not unsure
    return {
        (at, place + at - logical)
        for logical, place, length in sure
        for at in range(logical, logical + length, 4096)
    }


def _detail(site: cli.Site) -> str:
    checked = site.run("check", NAME, "--checkpoint", "--json", check=0).json()
    (line,) = (each for each in checked["checks"] if each["check"] == "checkpoint")
    return str(line["detail"])


def test_check_says_how_much_is_written_for_a_page(tmp_path: Path) -> None:
    """Of a RAM file that QEMU has made on XFS, by its folios."""
    with reflinks.site_on("xfs", tmp_path) as site, reflinks.guest(site, ram=patterns.dense):
        detail = _detail(site)
        assert "are written (" in detail
        assert "times as much), by the folios of its RAM file" in detail


def test_elsewhere_it_is_not_made(site: cli.Site, tmp_path: Path) -> None:
    """Images that share nothing: refused, or restored without, as was asked for."""
    with storage.tmpfs(200 * MIB, tmp_path) as plain:
        other = cli.Site(plain / "site")
        with saved(other, ram=patterns.sparse) as scene:
            other.settings["memory"] = {"shared_file": "on"}
            other.write()
            error = other.run("restore", scene.image, "--json", check=3).error("check.checkpoint")
            assert "is not on XFS or btrfs" in error["message"]
            assert state_of(other, scene.image) == "saved"
            other.guests[NAME]["memory"] = {"shared_file": "auto"}
            other.write()
            done = _restored(other, scene.image)
            assert (done["instant"], done["shared_file"]) == (True, False)
            with scene.guest.successor() as guest:
                ram.assert_same(scene.ram, guest.ram)
            assert "is not on XFS or btrfs" in done["reasons"]["shared_file"]


def test_too_little_room(tmp_path: Path) -> None:
    with _site("xfs", tmp_path, "off") as site, saved(site, ram=patterns.sparse) as scene:
        site.settings["memory"] = {"shared_file": "on"}
        site.write()
        room = os.statvfs(site.images)
        filler = site.directory / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 24 * MIB)
        error = site.run("restore", scene.image, "--json", check=3).error("check.checkpoint")
        assert "32.0 MiB needed: as much as the guest can change" in error["message"]
        filler.unlink()
        done = _restored(site, scene.image)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
        assert done["shared_file"] is True


def test_an_image_from_elsewhere_is_read_into_it(xfs: cli.Site, tmp_path: Path) -> None:
    with saved(xfs, ram=patterns.sparse) as scene:
        there = tmp_path / "there"
        shutil.copyfile(scene.image, there)
        there.chmod(0o600)
        error = xfs.run("restore", there, "--instant", "on", "--json", check=3)
        assert "Invalid cross-device link" in error.error("check.instant")["message"]
        done = _restored(xfs, there)
        assert (done["instant"], done["shared_file"]) == (False, True)
        assert "Invalid cross-device link" in done["reasons"]["instant"]
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
            reflinks.checkpoint(xfs, "one")
        done = _restored(xfs, "one", "--instant", "off")
        assert (done["instant"], done["shared_file"]) == (False, True)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)


def test_a_qemu_of_another_user(xfs: cli.Site) -> None:
    with qemu.directory_for(_NOBODY) as directory:
        under = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        with saved(xfs, directory=directory, under=under) as scene:
            assert _restored(xfs, scene.image)["shared_file"] is True
            assert os.listxattr(scene.image) == []
            with scene.guest.successor() as guest:
                (owners,) = {
                    (each.st_mode, each.st_uid) for each in memory.unnamed_files(guest).values()
                }
                assert owners == (stat.S_IFREG | 0o600, _NOBODY)
                ram.assert_same(scene.ram, guest.ram)
                reflinks.checkpoint(xfs, "one")


_CHANGES = """
case $(readlink /proc/$$/fd/64) in
    *deleted*) printf x | dd of=/proc/$$/fd/64 bs=1 seek=9M conv=notrunc 2>/dev/null;;
esac; exec "$@"
"""


@pytest.mark.parametrize(
    ("script", "message"),
    [('exec 64<&-; exec "$@"', "No such file"), (_CHANGES, "writes to RAM block 'pc.ram'")],
    ids=["closes it", "changes it"],
)
def test_a_command_that_spoils_it(xfs: cli.Site, script: str, message: str) -> None:
    """It is refused, or the guest restored without; the image is as it was."""
    with saved(xfs, ram=patterns.dense) as scene:
        launch = ["bash", "-c", script, "bash", *scene.guest.argv]
        xfs.add_guest(NAME, scene.guest.qmp, launch=launch)
        error = xfs.run("restore", scene.image, "--json", check=5).error()
        assert message in error["message"]
        assert state_of(xfs, scene.image) == "saved"
        xfs.settings["memory"] = {"shared_file": "auto"}
        xfs.write()
        done = _restored(xfs, scene.image)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
        assert done["shared_file"] is False
        assert message in done["reasons"]["shared_file"]


@pytest.mark.parametrize("arguments", [[], memory.nodes("16M", "16M")], ids=["main", "nodes"])
def test_what_setup_says_is_enough(tmp_path: Path, arguments: list[str]) -> None:
    """A guest that is started by what it says can be checkpointed."""
    with _site("xfs", tmp_path, "off") as site, saved(site, *arguments, machine="q35") as scene:
        advice = site.run("setup", "memory", NAME, "--json", check=0).json()
        assert (advice["file_system"], advice["obstacles"]) == ("XFS", [])
        launch = list(scene.guest.argv)
        for step in advice["steps"]:
            if step["before"]:
                option, value = step["before"].split(" ", 1)
                at = next(n for n, word in enumerate(launch) if word == value) - 1
                assert launch[at] == option
                del launch[at : at + 2]
            launch += step["after"].split(" ")
        site.add_guest(NAME, scene.guest.qmp, launch=launch)
        advice = site.run("setup", "memory", NAME, "--json", check=0).json()
        assert (advice["steps"], advice["obstacles"]) == ([], [])
        assert _restored(site, scene.image)["shared_file"] is False
        with scene.guest.successor() as guest:
            reflinks.checkpoint(site, "one")
            ram.assert_same(scene.ram, guest.ram)


def test_clones(xfs: cli.Site) -> None:
    """Each has a file of its own with ``on``; with ``auto`` they share the image's pages."""
    with saved(xfs, ram=patterns.sparse) as scene:
        argv = [
            word.replace(f"{scene.guest.directory}/{NAME}", f"{scene.guest.directory}/{{name}}")
            for word in scene.guest.argv
        ]
        template = {"qmp": f"{scene.guest.directory}/{{name}}.qmp", "launch": argv}
        xfs.guests[NAME]["clone"] = {"name": "clone-{n}", **template}
        for setting in ("on", "auto"):
            xfs.guests[NAME]["memory"] = {"shared_file": setting}
            xfs.write()
            done = xfs.run("clone", scene.image, "--count", "2", "--json", check=0).json()
            made = [each["result"]["shared_file"] for each in done["clones"]]
            assert made == [setting == "on"] * 2
            first, second = (each["guest"] for each in done["clones"])
            with (
                qemu.adopted(scene.guest.directory, first) as one,
                qemu.adopted(scene.guest.directory, second) as two,
            ):
                one.ram.write("pc.ram", 2 * MIB, b"of the first alone")
                ram.assert_same(scene.ram, two.ram)


def test_saved_again(xfs: cli.Site, tmp_path: Path) -> None:
    """By QEMU itself: the image is whole, and records the command line as it was configured."""
    with saved(xfs, ram=patterns.sparse) as scene:
        _restored(xfs, scene.image)
        with scene.guest.successor() as guest:
            guest.ram.write("pc.ram", 8 * MIB, b"changed since")
            before = guest.snapshot_ram(tmp_path / "again")
            xfs.run("save", NAME, "-o", "again", check=0)
            guest.wait()
        recorded = xfs.run("inspect", "again", "--json", check=0).json()["command"]["argv"]
        assert recorded == [*scene.guest.argv, "-S", "-incoming", "defer"]
        xfs.run("discard", scene.image, check=0)
        _restored(xfs, "again")
        with scene.guest.successor() as guest:
            ram.assert_same(before, guest.ram)
