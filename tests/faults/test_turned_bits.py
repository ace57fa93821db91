"""Bits that turn in an image of a real guest, in what QEMU would restore without a word."""

import os
from pathlib import Path

import pytest
from mapsave.image import image

from tests.kit import cli, patterns, qemu

IMAGE = "one.mapsave"


def _turn(path: Path, at: int) -> None:
    with path.open("r+b", buffering=0) as file:
        was = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([was[0] ^ 1]), at)


@pytest.mark.parametrize("what", ["bitmap", "device", "description"])
def test_a_bit_that_turned_is_found(site: cli.Site, what: str) -> None:
    """A page would be missing, or a device be in another state."""
    with qemu.running(name="web01", memory="16M", ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv)
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
        error = site.run(command, IMAGE, "--json", check=6).json()["error"]
        assert error["id"] == "image.corrupt"
    _turn(path, places[what])
