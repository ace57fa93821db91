"""Guests whose RAM is mapped from an image that is cut off, written to, or on failing storage."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mapsave.image import image

from tests.faults import struck
from tests.kit import cli, files, patterns, qemu, ram, storage
from tests.qemu.scene import Saved, saved

MIB = 1 << 20


@contextmanager
def _living(site: cli.Site, place: Path | None = None) -> Iterator[tuple[Saved, Path, qemu.Qemu]]:
    """Restore a guest instantly, from a copy of its image in ``place``, of which nothing is cached.

    Yields it as it was, its image, and as it is.
    """
    with saved(site, ram=patterns.sparse) as scene:
        path = scene.image
        if place is not None:
            path = Path(shutil.copy(path, place))
        site.run("restore", path, "--instant", "on", "--paused", check=0)
        with files.opened(path) as fd, scene.guest.successor() as guest:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            yield scene, path, guest


def _page(path: Path, at: int) -> int:
    """Return where a page of the guest's main memory is in its image."""
    with image.opened(path) as opened:
        return opened.validate().stream.blocks[0].pages_offset + at


def _read_by_qemu(guest: qemu.Qemu, file: Path) -> None:
    """Have QEMU read all of the guest's main memory."""
    guest.control.execute("pmemsave", val=0, size=32 * MIB, filename=str(file))


def test_raw_what_is_written_in_place_is_the_guests(site: cli.Site) -> None:
    """But for pages that it has changed itself."""
    with _living(site) as (_, path, guest):
        guest.ram.write("pc.ram", 8 * MIB, b"its own")
        with files.opened(path, os.O_WRONLY) as fd:
            for at in (8, 9):
                os.pwrite(fd, b"another", _page(path, at * MIB))
        assert guest.ram.read("pc.ram", 8 * MIB, 7) == b"its own"
        assert guest.ram.read("pc.ram", 9 * MIB, 7) == b"another"


def test_an_image_that_was_cut_off(site: cli.Site, tmp_path: Path) -> None:
    """QEMU dies if it reads there: so it is not saved, and lives as long as it does not."""
    with _living(site) as (_, path, guest):
        os.truncate(path, _page(path, 16 * MIB))
        assert "FAIL memory" in site.run("check", "web01", check=3).stdout
        error = site.run("save", "web01", "-o", "again", "--json", check=3).error()
        assert (error["id"], "was truncated" in error["message"]) == ("check.not_migratable", True)
        assert guest.alive()
        with pytest.raises(ConnectionError):
            _read_by_qemu(guest, tmp_path / "read")
        guest.wait()
        assert site.run("list", "--json", check=0).json()["images"]


@pytest.mark.root
def test_storage_that_fails(site: cli.Site, tmp_path: Path) -> None:
    """The kernel has no answer but SIGBUS; a save that meets it says what has become of QEMU."""
    with (
        storage.loop_filesystem("ext4", 96 * MIB, tmp_path) as place,
        _living(site, place) as (_, path, guest),
        storage.failing(place),
    ):
        error = site.run("save", "web01", "-o", "again", "--json", check=4).error("save.qemu_died")
        assert f"mapped from '{path}'" in error["hint"]
        guest.wait()
        assert not struck.journals(site)
        assert not struck.partials(site)


@pytest.mark.root
def test_a_file_system_that_is_full_or_read_only(site: cli.Site, tmp_path: Path) -> None:
    """The guest changes memory of its own, and is saved to another place."""
    with (
        storage.loop_filesystem("ext4", 96 * MIB, tmp_path) as place,
        storage.filled(place, leave=48 * MIB),
        _living(site, place) as (scene, _, guest),
        storage.read_only(place),
    ):
        ram.assert_same(scene.ram, guest.ram)
        for at in range(MIB, 32 * MIB, MIB):
            guest.ram.write("pc.ram", at, b"changed")
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", "web01", "-o", "again", check=0)
        guest.wait()
        site.run("restore", "again", check=0)
        with guest.successor() as again:
            ram.assert_same(before, again.ram)
