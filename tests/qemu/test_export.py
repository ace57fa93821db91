"""Images that a real QEMU wrote, moved with and without mapsave, and restored from there."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mapsave.image import holes

from tests.archive import moved
from tests.kit import cli, files, need, patterns, ram
from tests.qemu.scene import saved

pytestmark = pytest.mark.usefixtures("commands")

# The commands that unpack an archive where there is no mapsave, without and with a key.
_ZSTD, _AGE = "zstd -dc <{} | tar -xS", "age -d -i identity <{} | zstd -dc | tar -xS"


@pytest.fixture
def commands() -> None:
    """The commands that read and write archives without mapsave."""
    missing = [name for name in ("tar", "zstd", "age") if shutil.which(name) is None]
    need.skip_if(f"there is no {missing[0]}" if missing else None)


def extents(path: Path) -> list[tuple[int, int]]:
    with files.opened(path) as fd:
        return list(holes.extents(fd, 0, path.stat().st_size))


def assert_same(one: Path, other: Path) -> None:
    """Compare byte for byte, and hole for hole."""
    subprocess.run(["cmp", one, other], check=True)
    assert extents(one) == extents(other)
    assert len(extents(one)) > 3


@pytest.mark.parametrize("pattern", [patterns.sparse, patterns.fragmented(1)])
def test_a_guest_that_moves(site: cli.Site, tmp_path: Path, pattern: patterns.Pattern) -> None:
    """By a pipe, as to another host: it comes back there as it was."""
    site.settings["save"] = {"digests": "before"}
    site.write()
    other = cli.Site(tmp_path / "other")
    identity = moved.Identity(tmp_path)
    with saved(site, ram=pattern) as scene:
        command = f'"$@" export {scene.image} -o - -r {identity.recipient}'
        archive = tmp_path / "archive"
        with archive.open("wb") as file:
            words = ["sh", "-c", command, "sh", *cli.COMMAND, "--config", site.config]
            environ = {**os.environ, "PYTHONPATH": cli.tree.PYTHONPATH}
            subprocess.run(words, stdout=file, check=True, env=environ)
        done = other.run("import", archive, "-i", identity.file, "--json", check=0).json()
        path = other.images / scene.image.name
        assert (done["image"], done["state"], done["guest"]) == (str(path), "saved", "web01")
        assert_same(scene.image, path)
        other.run("verify", "--data", path, check=0)
        other.add_guest("web01", scene.guest.qmp, launch=scene.guest.argv)
        other.run("restore", path, check=0)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)


@pytest.mark.parametrize("unpack", [_ZSTD, _AGE], ids=["zstd", "age"])
def test_without_mapsave(site: cli.Site, tmp_path: Path, unpack: str) -> None:
    """What ``age -d | zstd -d | tar -xS`` gives is the image, and is restored."""
    identity = moved.Identity(tmp_path)
    recipients = ("-r", identity.recipient) if unpack == _AGE else ()
    with saved(site, ram=patterns.sparse) as scene:
        site.run("export", scene.image, "-o", tmp_path / "archive", *recipients, check=0)
        away = scene.image.rename(tmp_path / "away")
        subprocess.run(["sh", "-c", unpack.format("archive")], cwd=tmp_path, check=True)
        assert_same(away, tmp_path / scene.image.name)
        (tmp_path / scene.image.name).rename(scene.image)
        assert scene.image.stat().st_mode & 0o777 == 0o600
        scene.comes_back(site)


def packed_by_zstd(directory: Path) -> None:
    subprocess.run("zstd -dc <a | zstd -q -19 >b", shell=True, cwd=directory, check=True)


def packed_by_age(directory: Path) -> None:
    keys = moved.Identity(directory)
    subprocess.run(["age", "-r", keys.recipient, "-o", "b", "a"], cwd=directory, check=True)


@pytest.mark.parametrize("pack", [packed_by_zstd, packed_by_age])
def test_what_the_commands_wrote_is_imported(
    site: cli.Site, tmp_path: Path, pack: Callable[[Path], None]
) -> None:
    with saved(site, ram=patterns.sparse) as scene:
        site.run("export", scene.image, "-o", tmp_path / "a", check=0)
        pack(tmp_path)
        identity = tmp_path / "identity"
        words = ("-i", identity) if identity.exists() else ()
        site.run("import", tmp_path / "b", "-o", "back", *words, check=0)
        assert_same(scene.image, site.images / "back")


def test_one_that_a_guest_lives_on(site: cli.Site, tmp_path: Path) -> None:
    """It was restored then, and stays so; it is pinned, which a copy is as well."""
    with saved(site, ram=patterns.dense) as scene:
        site.run("restore", scene.image, "--instant", "on", check=0)
        site.run("pin", scene.image, check=0)
        with scene.guest.successor() as guest:
            site.run("export", scene.image, "-o", tmp_path / "archive", check=0)
            ram.assert_same(scene.ram, guest.ram)
        done = site.run("import", tmp_path / "archive", "-o", "back", "--json", check=0).json()
        assert done["state"] == "restored"
        assert_same(scene.image, site.images / "back")
        refused = site.run("restore", "back", "--json", check=3)
        refused.error("check.already_restored")
