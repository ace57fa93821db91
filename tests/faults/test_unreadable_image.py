"""Bits that turn in the image of a real guest, and a disk that fails while it is read."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mapsave.image import image

from tests.faults import struck
from tests.kit import cli, inject, passthrough, patterns, qemu

NAME = "web01"
IMAGE = "one.mapsave"


@contextmanager
def _saved(site: cli.Site) -> Iterator[qemu.Qemu]:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        yield guest


def _failing(call: inject.Call, skip: int = 0) -> dict[str, str]:
    return inject.environment(inject.Rule(call, "errno", errno.EIO, IMAGE, skip=skip, count=-1))


@pytest.mark.parametrize("command", ["inspect", "verify", "check", "restore"])
def test_an_image_that_cannot_be_read_is_reported_as_such(site: cli.Site, command: str) -> None:
    with _saved(site) as guest:
        content = (site.images / IMAGE).read_bytes()
        for env in (_failing("pread"), _failing("pread", 3), _failing("pread", 9)):
            result = site.run(command, str(site.images / IMAGE), "--json", env=env, check=6)
            assert result.error_id() == "image.unreadable"
        site.run(command, IMAGE, "--json", env=_failing("open"), check=6).error("image.unreadable")
        assert (site.images / IMAGE).read_bytes() == content
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"


def test_it_is_listed_with_its_error(site: cli.Site) -> None:
    with _saved(site):
        listed = site.run("list", "--json", env=_failing("pread"), check=6)
    (found,) = listed.json()["images"]
    assert (found["state"], found["error"]["id"]) == ("unreadable", "image.unreadable")
    assert "warning: 1 of 1 images cannot be read" in listed.stderr


def test_recovery_waits_for_an_image_that_cannot_be_read(site: cli.Site) -> None:
    """The image may have to be marked: it must not count as one that is gone."""
    with _saved(site) as guest:
        struck.run(site, "after", "run", "KILL", "restore", IMAGE)
        for env in (_failing("pread"), _failing("open")):
            (line,) = site.run("recover", "--json", env=env, check=6).json()["operations"]
            assert line["error"]["id"] == "image.unreadable"
            assert struck.journals(site)
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert line["outcome"] == "guest restored"
        with guest.successor() as restored:
            assert restored.status() == "running"
    assert site.run("restore", IMAGE, "--json", check=3).error_id() == ("check.already_restored")


def test_what_qemu_would_die_of_is_read_before(site: cli.Site) -> None:
    """On a device that has failed once: QEMU itself can read the image here, mapsave cannot."""
    fails = _failing("preadv")
    with _saved(site) as guest:
        before = set(site.state.rglob("*.log"))
        site.run("verify", "--add-digests", IMAGE, "--json", env=fails, check=6)
        result = site.run("restore", IMAGE, "--json", env=fails, check=6)
        assert result.error_id() == "image.unreadable"
        assert set(site.state.rglob("*.log")) == before  # no QEMU was started
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"


def test_storage_that_is_elsewhere_is_read_before(site: cli.Site, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with passthrough.mounted(tmp_path / "here") as place, _saved(site) as guest:
        moved = place / IMAGE
        moved.write_bytes((site.images / IMAGE).read_bytes())
        moved.chmod(0o600)
        trust = ("--trust-image", "--json")  # it is another process that serves it
        result = site.run("restore", moved, *trust, env=_failing("preadv"), check=6)
        assert result.error_id() == "image.unreadable"
        site.run("restore", moved, *trust, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"


def _turn(path: Path, at: int) -> None:
    with path.open("r+b", buffering=0) as file:
        was = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([was[0] ^ 1]), at)


@pytest.mark.parametrize("what", ["bitmap", "device", "description"])
def test_a_bit_that_turned_is_found(site: cli.Site, what: str) -> None:
    """A page would be missing, or a device be in another state."""
    with qemu.guest(site, "web01", memory="16M", ram=patterns.dense) as guest:
        site.run("save", "web01", "--image", IMAGE, check=0)
        guest.wait()
        _found_in(site, site.images / IMAGE, what)
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() in ("prelaunch", "paused")


def _found_in(site: cli.Site, path: Path, what: str) -> None:
    """Turn a bit, see that every command finds it, and turn it back."""
    with image.opened(path) as opened:
        stream = opened.validate().stream
    (cpu,) = (each for each in stream.devices if each.name == "cpu")
    places = {
        "bitmap": stream.blocks[0].bitmap_offset + 100,
        "device": cpu.offset + 8,
        "description": stream.description_offset + stream.description_length // 2,
    }
    _turn(path, places[what])
    for command in ("verify", "restore"):
        site.run(command, IMAGE, "--json", check=6).error("image.corrupt")
    _turn(path, places[what])
