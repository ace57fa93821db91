"""A domain that somebody ends and starts again in the meantime: the new QEMU is not ours to
touch."""

import asyncio
import os
import signal
import threading
from typing import Any

import pytest
from mapsave import errors
from mapsave.migration import stall
from mapsave.monitor import libvirt_connection
from mapsave.operations import destination_libvirt

from tests.faults import struck
from tests.kit import cli, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, MIB, nothing_left, small


def started_anew(guest: Domain) -> int:
    """End the domain, and start it again, paused; return the pid of its new QEMU."""
    guest.virsh("destroy")
    guest.virsh("start", "--paused")
    return guest.pid


def _status(guest: Domain) -> str:
    return str(guest.execute("query-status")["status"])


def untouched(guest: Domain, pid: int) -> None:
    """Fail unless the QEMU of that pid is the guest's, and is as ``started_anew`` left it."""
    assert guest.pid == pid
    assert guest.state() == "paused (user)"
    assert _status(guest) == "prelaunch"
    assert guest.execute("query-fdsets") == []
    assert guest.execute("query-migrate") == {}


@pytest.mark.parametrize("step", ["label", "hand-over", "pause", "migrate"])
def test_started_anew_while_it_is_saved(daemon: Daemon, site: cli.Site, step: str) -> None:
    """There is no image: it would hold the new guest, or half of the old one."""
    with small(daemon, paused=False, transient=False) as guest:
        save = ("save", guest.address, "--image", IMAGE, "--json")
        with struck.stopped(site, step, *save) as process:
            pid = started_anew(guest)
            error = cli.ended(process, check=4).error("save.qemu_died")
        assert "was destroyed" in error["message"]
        untouched(guest, pid)
        nothing_left(site)


@pytest.mark.parametrize("step", ["complete", "commit", "committed"])
def test_started_anew_behind_its_stream(daemon: Daemon, site: cli.Site, step: str) -> None:
    """The old QEMU's image is whole, and the new QEMU is left alone."""
    with small(daemon, paused=False, transient=False) as guest:
        save = ("save", guest.address, "--image", IMAGE, "--json")
        with struck.stopped(site, step, *save) as process:
            pid = started_anew(guest)
            cli.ended(process, check=0)
        untouched(guest, pid)
        nothing_left(site, IMAGE)
        site.run("verify", IMAGE, check=0)


@pytest.mark.parametrize("step", ["load", "mark", "run"])
def test_started_anew_while_it_is_restored(daemon: Daemon, site: cli.Site, step: str) -> None:
    with small(daemon, paused=False, transient=False) as guest:
        at = ("--guest", guest.address, "--json")
        site.run("save", guest.address, "--image", IMAGE, check=0)
        with struck.stopped(site, step, "restore", IMAGE, *at) as process:
            pid = started_anew(guest)
            result = cli.ended(process, check=5)
        words = ("was destroyed", "terminating on signal 15")
        assert any(each in result.error()["message"] for each in words), result
        untouched(guest, pid)
        nothing_left(site, IMAGE)
        assert site.run("inspect", IMAGE, "--json", check=0).json()["state"] == "saved"


def test_started_anew_while_the_destination_loads(daemon: Daemon, site: cli.Site) -> None:
    """Nothing stands still: its start does not meet a destroy of ours."""
    with small(daemon, paused=False, transient=False, memory=256 * MIB) as guest:
        at = ("--guest", guest.address, "--json")
        site.run("save", guest.address, "--image", IMAGE, check=0)
        for _ in range(3):
            with struck.stopped(site, "load", "restore", IMAGE, "--again", *at) as process:
                process.send_signal(signal.SIGCONT)
                pid = started_anew(guest)
                result = cli.ended(process)
            # Where the restore was quicker, it was the restored guest that was ended.
            assert result.returncode in (0, 5), result
            untouched(guest, pid)
            guest.virsh("destroy")


@pytest.mark.parametrize("step", ["label", "migrate", "complete"])
def test_started_anew_while_libvirtd_is_away(own_daemon: Daemon, site: cli.Site, step: str) -> None:
    """Its only domain gone, the daemon counts ids from the first again: they are the same."""
    with small(own_daemon, paused=False, transient=False) as guest:
        number = guest.virsh("domid").stdout
        save = ("save", guest.address, "--image", IMAGE, "--json")
        with struck.stopped(site, step, *save) as process:
            own_daemon.kill()
            own_daemon.start()
            # It may be gone already: the new daemon quits one that it cannot take over.
            guest.virsh("destroy", check=False)
            guest.wait_state("shut off")
            own_daemon.restart()
            guest.virsh("start", "--paused")
            pid = guest.pid
            assert guest.virsh("domid").stdout == number
            result = cli.ended(process)
        assert result.returncode == (0 if step == "complete" else 4), result
        untouched(guest, pid)
        nothing_left(site, *([IMAGE] if step == "complete" else []))


# A start that is called off.


@pytest.mark.parametrize("through", [[], ["--through-libvirt"]], ids=["own", "through"])
def test_start_that_hangs_is_called_off(daemon: Daemon, site: cli.Site, through: list[str]) -> None:
    with small(daemon, transient=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        # QEMU waits for somebody to write into its firmware, before it looks at its monitor.
        firmware = daemon.directory / "halt.bin"
        firmware.unlink()
        os.mkfifo(firmware)
        try:
            with site.start("restore", IMAGE, "--guest", guest.address, *through) as process:
                guest.wait_state("paused (starting up)")
                process.send_signal(signal.SIGTERM)
                result = cli.ended(process)
        finally:
            firmware.unlink()
        assert result.returncode == 9, result
        guest.wait_state("shut off")
        nothing_left(site, IMAGE)


@pytest.mark.parametrize("is_cancelled_first", [True, False])
def test_started_by_somebody_else_before_our_start(
    daemon: Daemon, is_cancelled_first: bool
) -> None:
    """Ours fails, and theirs runs on, though ours was cancelled."""
    with small(daemon, transient=False) as guest:
        guest.virsh("destroy")
        xml = guest.xml()
        asked, let = threading.Event(), threading.Event()

        def start(connection: Any) -> Any:
            asked.set()
            assert let.wait(wait.LONG)
            return libvirt_connection.life(connection.createXML(xml, 0))

        async def restoring() -> None:
            connection = await libvirt_connection.connect(daemon.uri)
            wanted = destination_libvirt.Start(daemon.uri, xml, lambda: None, None, wait.LONG)
            watch = stall.Watch(wait.LONG, 0, lambda: None)
            start_it = destination_libvirt._start(connection, wanted, start, watch)
            starting = asyncio.ensure_future(start_it)
            try:
                await asyncio.to_thread(asked.wait, wait.LONG)
                await asyncio.to_thread(guest.virsh, "start", "--paused")
                if is_cancelled_first:
                    starting.cancel()
                let.set()
                await starting
            finally:
                await libvirt_connection.close(connection)

        expected = asyncio.CancelledError if is_cancelled_first else errors.LaunchFailed
        with pytest.raises(expected):
            asyncio.run(restoring())
        assert guest.state() == "paused (user)"
