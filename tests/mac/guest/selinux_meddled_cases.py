"""SELinux: refusals that only the kernel sees, and labels changed after mapsave's back."""

import os
import signal
from pathlib import Path

import pytest

from tests.kit import cli, patterns, ram
from tests.mac.guest import meddling, svirt


@pytest.mark.refusal
def test_descriptor_dropped_by_the_kernel(site: cli.Site) -> None:
    """No one has labelled the image or asked: the kernel drops the descriptor on its way."""
    with svirt.running(paused=False) as guest:
        before = guest.state()
        done = site.run(*svirt.save(guest, site.images / "dropped", "none"))
        error = svirt.assert_refused(done, svirt.AT_REST, svirt.GUEST, "may not write")
        assert not error["message"].startswith("No file descriptor")
        assert guest.state() == before
    assert list(site.images.iterdir()) == []
    assert svirt.refusals("dropped") != [], "else nobody sees in the log what was handed over"


@pytest.mark.refusal
def test_descriptors_that_may_not_be_used(site: cli.Site) -> None:
    """The rule "fd use" is missing: the label is right, and still the kernel drops them."""
    own = svirt.policy(site, image_type="svirt_prot_exec_image_t")
    missing = (
        "may not use descriptors opened by mapsave, which runs as system_u:system_r:initrc_t:s0"
    )
    rule = "allow svirt_prot_exec_t initrc_t:fd use;"
    with svirt.running(context=svirt.OTHER_DOMAIN) as guest, svirt.without_fd_use():
        before = guest.state()
        done = site.run(*svirt.save(guest, site.images / "asked", own))
        error = svirt.assert_refused(done, svirt.OTHER_DOMAIN, missing)
        assert error["hint"] == f"add the rule: {rule}"
        assert (error["data"]["class"], error["data"]["permission"]) == ("fd", "use")
        assert not svirt.refused_descriptors(), "the kernel was asked, so it was handed over"
        svirt.relabel(site.images, "system_u:object_r:svirt_prot_exec_image_t:s0")
        done = site.run(*svirt.save(guest, site.images / "dropped", "none"))
        svirt.assert_refused(done, "may write such a file", missing, rule)
        assert svirt.refused_descriptors()
        assert guest.state() == before
    assert list(site.images.iterdir()) == []


@pytest.mark.refusal
def test_descriptor_dropped_without_a_word_in_the_log(site: cli.Site) -> None:
    """The policy has a dontaudit rule for guests that write to this type."""
    label = "system_u:object_r:virt_content_t:s0"
    svirt.relabel(site.images, label)
    with svirt.running() as guest:
        before = guest.state()
        done = site.run(*svirt.save(guest, site.images / "silent", "none"))
        svirt.assert_refused(done, label, svirt.GUEST, "may not write")
        assert guest.state() == before
    assert list(site.images.iterdir()) == []
    assert svirt.refusals("silent") == []


@pytest.mark.refusal
def test_descriptor_dropped_at_a_restore(site: cli.Site) -> None:
    image = site.images / "unread"
    with svirt.running(ram=patterns.sparse) as guest:
        site.run(*svirt.save(guest, image, "selinux-svirt"), check=0)
    content = image.read_bytes()
    with svirt.running(incoming=True) as other:
        words = ("restore", image, "--into", other.address, "--policy", "none", "--json")
        svirt.assert_refused(site.run(*words), svirt.AT_REST, svirt.GUEST, "may not read")
        assert other.control.execute("query-fdsets") == []
    assert image.read_bytes() == content
    assert svirt.label_of(image) == svirt.AT_REST


@pytest.mark.refusal
def test_label_changed_between_hand_over_and_migrate(site: cli.Site) -> None:
    image = site.images / "changed"
    with svirt.running(paused=False) as guest:
        before = guest.state()
        with site.start(*svirt.save(guest, image, "selinux-svirt")) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                assert "status" not in guest.control.execute("query-migrate"), "too late"
                svirt.relabel(_partial(image), svirt.OTHERS_IMAGE)
            done = cli.ended(process)
        svirt.assert_refused(done, svirt.OTHERS_IMAGE, svirt.GUEST, "may not write")
        assert guest.state() == before
        assert before.run_state == "running"
    assert list(site.images.iterdir()) == []


@pytest.mark.refusal
def test_label_changed_during_the_save(site: cli.Site) -> None:
    image = site.images / "changed"
    with svirt.running(memory="96M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        with site.start(*svirt.save(guest, image, "selinux-svirt")) as process:
            with meddling.held(process, lambda: meddling.migrating(guest)):
                svirt.relabel(_partial(image), svirt.OTHERS_IMAGE)
            done = cli.ended(process)
        svirt.assert_refused(done, svirt.OTHERS_IMAGE, svirt.GUEST, "may not write")
        assert guest.state() == before
        assert before.run_state == "running"
    assert list(site.images.iterdir()) == []


@pytest.mark.refusal
def test_label_changed_before_the_restore_begins(site: cli.Site) -> None:
    """And the old label is back on the image after the failure."""
    image = site.images / "changed"
    with svirt.running(ram=patterns.dense) as guest:
        site.run(*svirt.save(guest, image, "selinux-svirt"), check=0)
    with svirt.running(incoming=True) as other:
        words = ("restore", str(image), "--into", other.address, "--policy", "selinux-svirt")
        with site.start(*words, "--json") as process:
            with meddling.held(process, lambda: meddling.handed_over(other)):
                assert "status" not in other.control.execute("query-migrate"), "too late"
                assert svirt.label_of(image) == svirt.IMAGE
                svirt.relabel(image, svirt.OTHERS_IMAGE)
            done = cli.ended(process)
        svirt.assert_refused(done, svirt.OTHERS_IMAGE, svirt.GUEST, "may not read")
    assert svirt.label_of(image) == svirt.AT_REST
    assert site.run("inspect", image, "--json", check=0).json()["state"] == "saved"


@pytest.mark.cancels
def test_old_label_is_back_after_a_failed_save(site: cli.Site) -> None:
    """Seen on the partial image, which is deleted, by a descriptor that the test keeps.

    Of a type that mapsave may not create files with, so that it labels the image afterwards.
    """
    image = site.images / "failed"
    with svirt.running(memory="96M", ram=patterns.dense, paused=False) as guest:
        words = svirt.save(guest, image, svirt.policy(site, label=svirt.UNBORN_IMAGE))
        with site.start(*words) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                kept = os.open(_partial(image), os.O_RDONLY)
                assert svirt.label_of(kept) == svirt.UNBORN_IMAGE
            process.send_signal(signal.SIGINT)
            cli.ended(process, check=9)
        assert guest.status() == "running"
    try:
        assert os.fstat(kept).st_nlink == 0
        assert svirt.label_of(kept) == svirt.AT_REST
    finally:
        os.close(kept)


def test_recover_finishes_what_a_killed_save_had_labelled(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "recovered"
    with svirt.running(memory="64M", ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        with site.start("save", "web01", "--image", image) as process:
            with meddling.held(process, lambda: meddling.migrating(guest)):
                assert svirt.label_of(_partial(image)) == svirt.IMAGE
                process.kill()
            process.wait()
        guest.wait_migration("completed")
        site.run("recover", check=0)
        guest.wait()
        assert svirt.label_of(image) == svirt.AT_REST
        site.run("restore", image, check=0)
        with guest.successor() as restored:
            ram.assert_same(before, restored.ram)


def _partial(image: Path) -> Path:
    return image.with_name(image.name + ".partial")
