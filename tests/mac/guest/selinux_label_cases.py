"""SELinux: the label of an image, and labels that would not do, refused before QEMU is asked.

mapsave runs in initrc_t, QEMU in svirt_t with the categories c1 and c2.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, patterns, ram
from tests.kit.qemu import Qemu
from tests.mac.guest import svirt

PREFIX = "system_u:object_r:svirt_image_t"


def test_saves_and_restores(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "right-label"
    with svirt.running(ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        saved = site.run("save", "web01", "--image", image, "--json", check=0).json()
        guest.wait()
        assert saved["label"]["value"] == svirt.IMAGE
        assert saved["label"]["process"] == svirt.GUEST
        assert svirt.label_of(image) == svirt.AT_REST
        done = site.run("restore", image, "--instant", "on", "--json", check=0).json()
        assert done["instant"] is True
        with guest.successor() as restored:
            assert svirt.context_of(restored.pid) == svirt.GUEST
            ram.assert_same(before, restored.ram)
        assert svirt.label_of(image) == svirt.AT_REST
    assert svirt.refusals(image.name) == []


def test_label_has_the_levels_of_the_guest(site: cli.Site) -> None:
    """A range of categories, and a range of levels, whose low part counts."""
    levels = {"s0:c1.c3,c7": "s0:c1.c3,c7", "s0:c5-s0:c5,c6": "s0:c5"}
    for number, (level, expected) in enumerate(levels.items()):
        with svirt.running(context=f"system_u:system_r:svirt_t:{level}") as guest:
            words = svirt.save(guest, site.images / str(number), "selinux-svirt")
            saved = site.run(*words, check=0).json()
        assert saved["label"]["value"] == f"{PREFIX}:{expected}"


@pytest.mark.refusal
def test_wrong_type_is_refused_before(site: cli.Site) -> None:
    own = svirt.policy(site, image_type="virt_image_t")
    with svirt.running(paused=False) as guest:
        _assert_refused_before(site, guest, own, "system_u:object_r:virt_image_t:s0:c1,c2")


@pytest.mark.refusal
def test_without_a_label_it_is_refused_before(site: cli.Site) -> None:
    """The system does not say which label images have, so ``auto`` sets none."""
    with svirt.running(paused=False) as guest, svirt.without_image_context():
        error = _assert_refused_before(site, guest, "auto", svirt.AT_REST)
    assert "policy auto requires no other label" in error["message"]


@pytest.mark.refusal
def test_categories_of_another_guest_are_refused_before(site: cli.Site) -> None:
    own = svirt.policy(site, label=svirt.OTHERS_IMAGE)
    with svirt.running() as guest:
        _assert_refused_before(site, guest, own, svirt.OTHERS_IMAGE)


@pytest.mark.refusal
def test_more_categories_than_the_guests_are_refused_before(site: cli.Site) -> None:
    own = svirt.policy(site, label=f"{PREFIX}:s0:c1.c3")
    with svirt.running() as guest:
        _assert_refused_before(site, guest, own, f"{PREFIX}:s0:c1.c3")


def test_fewer_categories_than_the_guests_will_do(site: cli.Site) -> None:
    own = svirt.policy(site, label=f"{PREFIX}:s0:c1")
    with svirt.running() as guest:
        saved = site.run(*svirt.save(guest, site.images / "fewer", own), check=0).json()
    assert saved["label"]["value"] == f"{PREFIX}:s0:c1"


def test_order_of_categories_does_not_matter(site: cli.Site) -> None:
    own = svirt.policy(site, label=f"{PREFIX}:s0:c2,c1", at_rest="keep")
    with svirt.running() as guest:
        saved = site.run(*svirt.save(guest, site.images / "order", own), check=0).json()
    assert saved["label"]["value"] == svirt.IMAGE


def test_unknown_type_breaks_the_policy(site: cli.Site) -> None:
    own = svirt.policy(site, image_type="nonsense_t")
    with svirt.running() as guest:
        before = guest.state()
        error = site.run(*svirt.save(guest, site.images / "a", own), check=7).error(
            "policy.violation"
        )
        assert "nonsense_t" in error["message"]
        assert guest.state() == before
    assert list(site.images.iterdir()) == []


def test_label_at_rest(site: cli.Site) -> None:
    whole = "system_u:object_r:virt_content_t:s0"
    for choice, expected in {"keep": svirt.IMAGE, whole: whole}.items():
        image = site.images / expected
        with svirt.running() as guest:
            words = svirt.save(guest, image, svirt.policy(site, at_rest=choice))
            site.run(*words, check=0)
        assert svirt.label_of(image) == expected


@pytest.mark.refusal
def test_image_of_another_guest_is_not_restored(site: cli.Site) -> None:
    """And the guest whose image it is may: its label is not even changed."""
    image = site.images / "others"
    with svirt.running(ram=patterns.sparse) as guest:
        site.run(*svirt.save(guest, image, svirt.policy(site, at_rest="keep")), check=0)
    own = svirt.policy(site, label=svirt.IMAGE)
    with svirt.running(context=svirt.GUEST.replace("c1,c2", "c3,c4"), incoming=True) as other:
        words = ("restore", image, "--into", other.address, "--policy", own, "--json")
        error = svirt.assert_refused(site.run(*words), svirt.IMAGE, "c3,c4", "read")
        assert error["data"]["label"] == svirt.IMAGE
        assert other.status() == "inmigrate"
    assert svirt.label_of(image) == svirt.IMAGE
    assert svirt.refusals(image.name) == []
    assert site.run("inspect", image, "--json", check=0).json()["state"] == "saved"
    with svirt.running(incoming=True) as guest:
        site.run("restore", image, "--into", guest.address, "--policy", "selinux-svirt", check=0)
    assert svirt.label_of(image) == svirt.IMAGE


@pytest.mark.refusal
def test_place_that_takes_no_labels_and_has_a_wrong_one(site: cli.Site) -> None:
    """A mount with context=, as of NFS and vfat: setting a label is not supported there."""
    with (
        svirt.mounted(site.directory / "wrong", svirt.OTHERS_IMAGE) as place,
        svirt.running() as guest,
    ):
        done = site.run(*svirt.save(guest, place / "image", "selinux-svirt"))
        svirt.assert_refused(done, svirt.OTHERS_IMAGE, svirt.GUEST, "write")
        assert list(place.iterdir()) == []
    assert svirt.refusals("image.partial") == []


def test_place_that_takes_no_labels_and_has_the_right_one(site: cli.Site, tmp_path: Path) -> None:
    with svirt.mounted(site.directory / "right", svirt.IMAGE) as place:
        with svirt.running(ram=patterns.sparse) as guest:
            site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
            before = guest.snapshot_ram(tmp_path / "before")
            site.run("save", "web01", "--image", place / "image", check=0)
            guest.wait()
            site.run("restore", place / "image", check=0)
            with guest.successor() as restored:
                ram.assert_same(before, restored.ram)
        assert svirt.label_of(place / "image") == svirt.IMAGE


def _assert_refused_before(site: cli.Site, guest: Qemu, policy: str, label: str) -> dict[str, Any]:
    """Save: refused with nothing handed over and nothing left, and the guest as it was."""
    before = guest.state()
    done = site.run(*svirt.save(guest, site.images / "refused", policy))
    # File's label, process, class, permission.
    error = svirt.assert_refused(done, label, svirt.GUEST, "file", "write")
    assert error["data"]["label"] == label
    assert error["data"]["process"] == svirt.GUEST
    assert error["data"]["class"] == "file"
    assert error["data"]["permission"] == "write"
    assert guest.state() == before
    assert not [event for event in guest.control.events if event["event"] == "STOP"]
    assert list(site.images.iterdir()) == []
    assert svirt.refusals("refused") == [], "the kernel was asked, so it was handed over"
    return error
