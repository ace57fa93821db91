"""SELinux: images that QEMU may not open, that are born labelled, that have another type."""

from pathlib import Path

import pytest

from tests.faults import struck
from tests.kit import cli, patterns, ram
from tests.kit.qmp import QmpError
from tests.mac.guest import meddling, svirt

PRIVATE = "system_u:object_r:mapsave_tests_private_t:s0"  # guests may not even search these
OTHER_IMAGE = "system_u:object_r:svirt_prot_exec_image_t:s0:c1,c2"


def test_image_that_qemu_may_not_open_itself(site: cli.Site, tmp_path: Path) -> None:
    svirt.relabel(site.images, PRIVATE)
    image = site.images / "private"
    with svirt.running(ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", "web01", "--image", image, check=0)
        guest.wait()
        assert svirt.label_of(image) == PRIVATE
        site.run("restore", image, check=0)
        with guest.successor() as restored:
            ram.assert_same(before, restored.ram)


@pytest.mark.refusal
def test_same_image_by_its_path_is_refused_to_qemu(site: cli.Site) -> None:
    """That the case before this one shows something: even with the guest's own label."""
    svirt.relabel(site.images, PRIVATE)
    image = site.images / "private"
    image.touch()
    svirt.relabel(image, svirt.IMAGE)
    with svirt.running() as guest:
        try:
            guest.control.execute("migrate", uri=f"file:{image}")
        except QmpError as error:
            assert "Permission denied" in str(error)
        else:
            pytest.fail("not refused")
        assert guest.status() == "prelaunch"


def test_image_is_born_with_its_label(site: cli.Site) -> None:
    """A watcher sees it created, and never sees a label set."""
    own = svirt.policy(site, at_rest="keep")
    with svirt.running() as guest, meddling.Watch(site.images) as watch:
        saved = site.run(*svirt.save(guest, site.images / "born", own), check=0).json()
        assert watch.events() == [(meddling.IN_CREATE, "born.partial")]
    assert saved["label"]["previous"] == svirt.IMAGE
    assert svirt.label_of(site.images / "born") == svirt.IMAGE


def test_watcher_sees_a_label_that_is_set(site: cli.Site) -> None:
    """That the case before this one shows something: this one gets another label for rest."""
    with svirt.running() as guest, meddling.Watch(site.images) as watch:
        words = svirt.save(guest, site.images / "born", svirt.policy(site, at_rest="default"))
        site.run(*words, check=0)
        events = watch.events()
    assert events[0] == (meddling.IN_CREATE, "born.partial")
    assert [mask for mask, _ in events[1:]] == [meddling.IN_ATTRIB]


@pytest.mark.refusal
def test_guest_whose_type_wants_another_image_type(site: cli.Site) -> None:
    with svirt.running(context=svirt.OTHER_DOMAIN) as guest:
        before = guest.state()
        done = site.run(*svirt.save(guest, site.images / "prot", "selinux-svirt"))
        error = svirt.assert_refused(done, svirt.IMAGE, svirt.OTHER_DOMAIN, "may not write")
        assert "image_type" in error["hint"]
        assert guest.state() == before
    assert list(site.images.iterdir()) == []


def test_policy_names_the_other_image_type(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "prot"
    svirt.policy(site, image_type="svirt_prot_exec_image_t")
    site.settings["policies"] = str(site.directory)
    with svirt.running(context=svirt.OTHER_DOMAIN, ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="own")
        before = guest.snapshot_ram(tmp_path / "before")
        words = ("save", "web01", "--image", image, "--json")
        assert site.run(*words, check=0).json()["label"]["value"] == OTHER_IMAGE
        guest.wait()
        site.run("restore", image, check=0)
        with guest.successor() as restored:
            assert svirt.context_of(restored.pid) == svirt.OTHER_DOMAIN
            ram.assert_same(before, restored.ram)


def test_label_of_a_restore_that_was_killed(site: cli.Site) -> None:
    """The image does not keep the label of the guest that it was to be read by."""
    image = site.images / "killed"
    with svirt.running() as guest:
        site.run(*svirt.save(guest, image, "selinux-svirt"), check=0)
    before = svirt.label_of(image)
    assert before != svirt.IMAGE
    with svirt.running(incoming=True) as guest:
        words = ("restore", image, "--into", guest.address, "--policy", "selinux-svirt")
        struck.run(site, "after", "load", "KILL", *words)
        assert svirt.label_of(image) == svirt.IMAGE
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert (line["error"], line["warnings"]) == (None, [])
        assert svirt.label_of(image) == before
