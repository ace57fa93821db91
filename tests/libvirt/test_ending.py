"""A saved domain quits, and libvirt has noticed by the time that the save is over."""

import os
import shutil
import signal
import time

import pytest
from mapsave.monitor import kept_open, passthrough, process

from tests.kit import cli, domain, processes, wait
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, NAME, nothing_left, small

# Of one that may trace no process.
_UNPRIVILEGED = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]


def saved(site: cli.Site, guest: domain.Domain, **how: object) -> None:
    """Save the guest; ``how`` is that of ``cli.Site.run``."""
    site.run("save", guest.address, "--image", IMAGE, check=0, **how)
    nothing_left(site, IMAGE)


def test_transient_domain_is_listed_no_more(daemon: Daemon, site: cli.Site) -> None:
    with small(daemon) as guest:
        saved(site, guest)
        assert daemon.domains() == []


def test_persistent_domain_is_shut_off(daemon: Daemon, site: cli.Site) -> None:
    with small(daemon, transient=False) as guest:
        saved(site, guest)
        assert guest.state() == "shut off (shutdown)"
        site.run("restore", IMAGE, "--guest", guest.address, check=0)
        assert guest.state() == "paused (user)"


def test_domain_that_would_restart_is_destroyed(daemon: Daemon, site: cli.Site) -> None:
    """libvirt takes a quit for a shutdown, and would try to start the guest again."""
    text = domain.definition(NAME).replace(
        "<devices>", "<on_poweroff>restart</on_poweroff><devices>"
    )
    with domain.defined(daemon, text, NAME) as guest:
        guest.virsh("start", "--paused")
        saved(site, guest)
        assert guest.state() == "shut off (destroyed)"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv")
def test_without_the_right_to_trace_it_is_destroyed(daemon: Daemon, site: cli.Site) -> None:
    with small(daemon, transient=False) as guest:
        saved(site, guest, under=_UNPRIVILEGED)
        assert guest.state() == "shut off (destroyed)"


def test_libvirt_notices_the_end_only_once_the_process_is_gone(daemon: Daemon) -> None:
    """Else it would look, find the process alive, and look again after 0.2 s."""
    with small(daemon, transient=False) as guest:
        found = process.identity(guest.pid)
        assert found is not None
        with kept_open.connections(*found) as count:
            assert count == 1
            processes.end(found[0])
            time.sleep(0.3)
            assert guest.state().startswith("paused")
        guest.wait_state("shut off")


def test_descriptors_that_are_closed_meanwhile_are_passed_over(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU closes what a save had open, while we look at what it has open."""
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["99999", *listdir(path), "99999"])
    with small(daemon) as guest:
        found = process.identity(guest.pid)
        assert found is not None
        with kept_open.connections(*found) as count:
            assert count == 1


def test_no_connection_of_a_process_that_is_gone(daemon: Daemon) -> None:
    with small(daemon) as guest:
        found = process.identity(guest.pid)
        assert found is not None
        with kept_open.connections(found[0], found[1] + 1) as count:
            assert count == 0
        guest.kill()
        with kept_open.connections(*found) as count:
            assert count == 0


async def test_one_that_does_not_quit_is_destroyed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passthrough, "_QUIT_TIMEOUT", 0.5)
    with small(daemon, transient=False) as guest:
        async with passthrough.connected(daemon.uri, NAME) as session:
            assert session.pid is not None
            os.kill(session.pid, signal.SIGSTOP)
            await session.end(wait.LONG)
        assert guest.state() == "shut off (destroyed)"
