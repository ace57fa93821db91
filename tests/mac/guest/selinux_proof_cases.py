"""SELinux: the QEMU of a proof runs in the context of the guest, and can do what it is for."""

from pathlib import Path

import pytest

from tests.faults import struck
from tests.kit import cli, patterns, ram
from tests.mac.guest import proofs, svirt

OTHER_IMAGE = "svirt_prot_exec_image_t"  # without the rule that lets it be mapped


def test_proven_in_the_context_of_the_guest(site: cli.Site) -> None:
    image = site.images / "proven"
    with svirt.running(ram=patterns.sparse) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        words = ("save", "web01", "--image", image, "--prove", "pages")
        with site.start(*words, "--json") as process:
            assert proofs.seen(process, svirt.context_of) == svirt.GUEST
        guest.wait()
    with site.start("prove", image, "--json") as process:
        assert proofs.seen(process, svirt.context_of) == svirt.GUEST
    assert svirt.label_of(image) == svirt.AT_REST
    assert svirt.refusals(image.name) == []
    # Its core is written by that QEMU as well.
    core = site.images / "core"
    site.run("core", image, "-o", core, check=0)
    assert core.stat().st_size > 32 << 20
    assert svirt.label_of(core) == svirt.AT_REST
    assert list((site.state / "proofs").iterdir()) == []


def test_proven_by_the_command_of_its_process(site: cli.Site) -> None:
    """Of a guest that no launch is known of: its process says in which context it runs."""
    with svirt.running() as guest:
        words = svirt.save(guest, site.images / "plain", "selinux-svirt", "--prove", "load")
        with site.start(*words) as process:
            assert proofs.seen(process, svirt.context_of) == svirt.GUEST


@pytest.mark.refusal
def test_what_the_policy_forbids_is_said_before(site: cli.Site) -> None:
    """Guests of this type may use such images, but not map them."""
    own = svirt.policy(site, image_type=OTHER_IMAGE)
    with svirt.running(context=svirt.OTHER_DOMAIN, paused=False) as guest:
        before = guest.state()
        done = site.run(*svirt.save(guest, site.images / "no", own, "--prove", "load"))
        assert done.returncode != 0, "not refused"
        error = done.error("check.not_provable")
        assert done.returncode == 3
        assert svirt.OTHER_DOMAIN in error["message"]
        assert f"allow svirt_prot_exec_t {OTHER_IMAGE}:file map;" in error["hint"]
        assert guest.state() == before
        checked = site.run("check", guest.address, "--json").json()
        assert svirt.OTHER_DOMAIN in str(checked)
    assert list(site.images.iterdir()) == []


def test_label_of_a_proof_that_was_killed(site: cli.Site) -> None:
    image = site.images / "killed"
    with svirt.running() as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        site.run("save", "web01", "--image", image, check=0)
        guest.wait()
    struck.run(site, "after", "label", "KILL", "prove", image)
    _recovered(site, image)
    site.run("prove", image, check=0)


def _recovered(site: cli.Site, image: Path) -> None:
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert (line["operation"], line["error"], line["warnings"]) == ("prove", None, [])
    assert svirt.label_of(image) == svirt.AT_REST


def test_instantly_by_a_label_that_all_guests_may_read(site: cli.Site, tmp_path: Path) -> None:
    """As of libvirt guests, whose categories are not known before they start."""
    image = site.images / "shared"
    with svirt.running(ram=patterns.dense) as guest:
        own = svirt.policy(site, label="system_u:object_r:virt_content_t:s0")
        site.add_guest("web01", guest.qmp, launch=guest.argv)
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", "web01", "--image", image, check=0)
        guest.wait()
    done = site.run("restore", image, "--instant", "on", "--policy", own, "--json", check=0)
    assert done.json()["instant"] is True
    with guest.successor() as restored:
        ram.assert_same(before, restored.ram)
