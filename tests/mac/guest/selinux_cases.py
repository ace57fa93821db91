"""SELinux: mapsave runs in initrc_t, QEMU in svirt_t with the categories c1 and c2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit import patterns, ram
from tests.mac.guest import confined

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit import cli


def test_saves_and_restores(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "right-label"
    with confined.running(ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        saved = site.run("save", "web01", "--image", image, "--json", check=0).json()
        guest.wait()
        assert saved["label"]["value"] == confined.IMAGE
        assert saved["label"]["process"] == confined.GUEST
        assert confined.label_of(image) == confined.AT_REST
        site.run("restore", image, "--json", check=0)
        with guest.successor() as restored:
            assert confined.context_of(restored.pid) == confined.GUEST
            ram.assert_same(before, restored.ram)
        assert confined.label_of(image) == confined.AT_REST
    assert confined.refusals(image.name) == []


@pytest.mark.refusal
def test_wrong_type_is_refused_before(site: cli.Site) -> None:
    image = site.images / "wrong-type"
    own = confined.policy(site, image_type="virt_image_t")
    with confined.running() as guest:
        before = guest.state()
        words = ("save", guest.address, "--image", image, "--policy", own, "--json")
        error = site.run(*words, check=7).json()
        print(error)
        assert guest.state() == before
    assert confined.refusals(image.name) == []
