"""Somebody else at a libvirt guest that is saved already: is the image stale?"""

import pytest

from tests.faults import struck
from tests.kit import cli, domain
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, as_before, nothing_left, small


def _save(guest: Domain) -> tuple[str, ...]:
    return ("save", guest.address, "--image", IMAGE, "--json")


@pytest.mark.parametrize("step", ["commit", "committed"])
def test_guest_resumed_by_somebody_else_behind_the_commit(
    daemon: Daemon, site: cli.Site, step: str
) -> None:
    """It is too late to take the image back, but a guest that runs is not destroyed."""
    with small(daemon, paused=False) as guest:
        before = guest.status()
        with struck.stopped(site, step, *_save(guest)) as process:
            guest.virsh("resume")
            result = cli.ended(process)
        as_before(guest, before)
        assert result.returncode == 4, result
        assert result.error_id() == "save.guest_continued"
        nothing_left(site, IMAGE)
        _is_stale(site)


def _is_stale(site: cli.Site) -> None:
    error = site.run("restore", IMAGE, "--json", check=3).error("check.already_restored")
    assert "resumed its guest" in error["message"]


@pytest.mark.parametrize("step", ["complete", "commit", "committed"])
@pytest.mark.parametrize(("act", "left"), [("suspend", "paused (user)"), ("destroy", domain.GONE)])
def test_guest_resumed_by_somebody_else_and_stopped_again(
    daemon: Daemon, site: cli.Site, step: str, act: str, left: str
) -> None:
    """Its disks are newer than the image, and mapsave does not end what it has not stopped."""
    with small(daemon, paused=False) as guest:
        with struck.stopped(site, step, *_save(guest)) as process:
            guest.virsh("resume")
            guest.virsh(act)
            cli.ended(process, check=4).error("save.guest_continued")
        assert guest.state() == left
        if step == "complete":
            nothing_left(site)
        else:
            nothing_left(site, IMAGE)
            _is_stale(site)


@pytest.mark.parametrize("then", ["resume", "leave"])
def test_guest_ended_by_somebody_else_that_was_to_live_on(
    daemon: Daemon, site: cli.Site, then: str
) -> None:
    """The image is good, and the guest is not said to be there."""
    with small(daemon, paused=False) as guest:
        with struck.stopped(site, "complete", *_save(guest), "--then", then) as process:
            guest.virsh("destroy")
            error = cli.ended(process, check=4).error("save.qemu_died")
        assert error["data"]["image"] == str(site.images / IMAGE)
        nothing_left(site, IMAGE)
        daemon.virsh("restore", site.images / IMAGE)
        guest.wait_state("running")
