"""A destination whose guest would see other processors or another machine than it was saved in."""

import os
from pathlib import Path

import pytest
from mapsave.image import descriptors, image, superblock

from tests.kit import cli, qemu, ram
from tests.qemu.scene import saved, state_of

_GUEST = ("-cpu", "Haswell,hv-relaxed=on", "-smp", "2,sockets=1,cores=2")
# Features that TCG has on any host.
_UNNOTICED = [
    (("-cpu", "Nehalem,hv-relaxed=on", *_GUEST[2:]), "here 'Nehalem-x86_64-cpu'"),
    (("-cpu", "Haswell,hv-relaxed=on,-x2apic", *_GUEST[2:]), "missing here: x2apic"),
    (("-cpu", "Haswell,hv-relaxed=on,+adx", *_GUEST[2:]), "only here: adx"),
    (("-cpu", "Haswell", *_GUEST[2:]), "processor hv-relaxed=on, here off"),
    (("-cpu", "Haswell,hv-relaxed=on,stepping=3", *_GUEST[2:]), "stepping=4, here 3"),
    ((*_GUEST[:2], "-smp", "2,sockets=2,cores=1"), "topology cores=2, here 1"),
]
# QEMU refuses these itself, once it has read all RAM, with "Invalid argument".
_NOTICED = [
    ((*_GUEST[:2], "-smp", "1"), "2 vCPUs, here 1"),
    ((*_GUEST, "-machine", "vmport=off"), "vmport=on, here off"),
]


@pytest.mark.parametrize(("arguments", "words"), [*_UNNOTICED, *_NOTICED])
def test_refused(site: cli.Site, arguments: tuple[str, ...], words: str) -> None:
    with saved(site, *_GUEST, launch=False) as scene:
        with qemu.running(*arguments, memory="32M", incoming=True) as waiting:
            options = ("--into", waiting.address, "--json")
            error = site.run("restore", scene.image, *options, check=3).error("check.destination")
        assert words in error["message"]
        assert "--force" in error["hint"]
        assert state_of(site, scene.image) == "saved"


@pytest.mark.parametrize(("arguments", "words"), _UNNOTICED)
def test_forced(site: cli.Site, arguments: tuple[str, ...], words: str) -> None:
    with (
        saved(site, *_GUEST, launch=False) as scene,
        qemu.running(*arguments, memory="32M", incoming=True) as waiting,
    ):
        options = ("--into", waiting.address, "--force", "--json")
        done = site.run("restore", scene.image, *options, check=0).json()
        assert any(words in warning for warning in done["warnings"])
        ram.assert_same(scene.ram, waiting.ram)


def test_the_same_machine_is_no_difference(site: cli.Site) -> None:
    with saved(site, *_GUEST) as scene:
        done = site.run("restore", scene.image, "--json", check=0).json()
        with scene.guest.successor() as restored:
            assert done["warnings"] == []
            ram.assert_same(scene.ram, restored.ram)


def test_an_image_that_does_not_record_it_says_so(site: cli.Site) -> None:
    with saved(site) as scene:
        _forget(scene.image)
        done = site.run("restore", scene.image, "--json", check=0).json()
        with scene.guest.successor():
            (warning,) = done["warnings"]
            assert "does not record the guest's processors" in warning


def _forget(path: Path) -> None:
    """Take the record out of the metadata, as if an older mapsave had written them."""
    with image.opened(path) as opened:
        known = opened.metadata
        del known["hardware"]
        with descriptors.reopened(opened.fd, os.O_WRONLY) as writable:
            superblock.write(writable, opened.block, known)
