"""A libvirtd that stops answering, at every tenth call, and storage that hangs under a restore."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave import errors
from mapsave.monitor import libvirt_connection, libvirt_link, session
from mapsave.operations import domains, ending, recover, save, save_request

from tests.faults import struck
from tests.faults.in_time import calls, stopped
from tests.kit import cli, inject, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, small

_SHORT = 0.2
_STRIDE = 10


@contextlib.contextmanager
def stopped_daemon(pid: int) -> Iterator[None]:
    """Stop the daemon; fail where a call of libvirt's holds us up until it goes on."""
    late: list[bool] = []

    def go_on() -> None:
        late.append(True)
        os.kill(pid, signal.SIGCONT)

    # No signal reaches Python in such a call, so no limit of the test's own would end it.
    timer = threading.Timer(wait.LONG, go_on)
    timer.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)
    assert not late, "the event loop waited for libvirtd"


@contextlib.contextmanager
def silent(pid: int, at: int, patience: float = 2.0) -> Iterator[list[int]]:
    """Have the daemon stop before the ``at``-th call to it; yield the calls, counted.

    Those before it have ``patience`` seconds each.
    """
    call = libvirt_connection.call
    seen = [0]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:

        async def counted(*arguments: Any, **named: Any) -> Any:
            if seen[0] == at:
                stack.enter_context(stopped_daemon(pid))
                for module, names in {
                    session: ("COMMAND_TIMEOUT", "SILENT_TIMEOUT"),
                    libvirt_connection: ("CALL_TIMEOUT", "GRACE", "CLOSE_TIMEOUT"),
                    libvirt_link: ("RECONNECT_TIMEOUT",),
                    ending: ("QUIT_TIMEOUT", "LOST_TIMEOUT"),
                }.items():
                    for name in names:
                        patch.setattr(module, name, _SHORT)
            seen[0] += 1
            return await call(*arguments, **named)

        # The limit of the call that is not answered is looked up before we see it.
        patch.setattr(session, "COMMAND_TIMEOUT", patience)
        patch.setattr(session, "DRAIN_TIMEOUT", patience)
        patch.setattr(libvirt_connection, "call", counted)
        yield seen


@pytest.mark.cancels
async def test_save(daemon: Daemon, site: cli.Site) -> None:
    """Whatever was not undone, recovery brings the guest back to running."""
    with small(daemon, paused=False) as guest:
        config = configuration.load(site.config, {})
        known = config.guest(guest.address)
        at, patience = 0, 2.0
        while True:
            request = save_request.request(config, known, image=IMAGE, replace=True, then="resume")
            failed = False
            with silent(daemon.pid, at, patience) as seen:
                try:
                    async with asyncio.timeout(wait.LONG):
                        await save.save(known, config, request)
                except errors.MapsaveError:
                    failed = True
            if seen[0] <= at and not failed:
                break
            for _ in range(5):
                done = await recover.recover(config)
                if not struck.journals(site):
                    break
            assert not struck.journals(site), done
            assert guest.state() == "running (unpaused)"
            if seen[0] > at:
                at += _STRIDE
            else:  # the host was too busy for the limits
                patience *= 2
        assert at > 2 * _STRIDE


async def test_list(daemon: Daemon, site: cli.Site) -> None:
    config = configuration.load(site.config, {})
    with small(daemon), silent(daemon.pid, 0), pytest.raises(errors.Unreachable):
        async with asyncio.timeout(wait.LONG):
            await domains.domains(config, daemon.uri)


async def test_connection_that_comes_too_late(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drops it closes it, which waits for the daemon: that is not the event loop."""
    monkeypatch.setattr(libvirt_connection, "CALL_TIMEOUT", _SHORT)
    opened = threading.Event()
    library = libvirt_connection.library()
    really = library.open

    def slowly(uri: str) -> Any:
        connection = really(uri)
        opened.set()
        return connection

    monkeypatch.setattr(library, "open", slowly)
    with stopped_daemon(daemon.pid), pytest.raises(errors.Unreachable):
        await libvirt_connection.connect(daemon.uri)
    assert opened.wait(wait.LONG)
    with stopped_daemon(daemon.pid):
        await asyncio.sleep(_SHORT)


_WAYS = pytest.mark.parametrize("through", [[], ["--through-libvirt"]], ids=["own", "through"])
_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def saved(site: cli.Site, guest: Domain) -> Path:
    """Save the guest; return a definition whose QEMU hangs in its first read of a page."""
    site.run("save", guest.address, "--image", IMAGE, check=0)
    rules = inject.environment(inject.Rule("preadv", "hang", first=4 << 20, count=-1))
    variables = "".join(f"<q:env name='{key}' value='{rules[key]}'/>" for key in rules)
    text = site.run("inspect", IMAGE, "--xml", check=0).stdout
    more = f"<q:commandline xmlns:q='{_NAMESPACE}'>{variables}</q:commandline></domain>"
    file = site.directory / "hanging.xml"
    file.write_text(text.replace("</domain>", more))
    return file


@_WAYS
def test_load_that_stalls(daemon: Daemon, site: cli.Site, through: list[str]) -> None:
    site.settings["restore"] = {"stall": "2s"}
    site.write()
    with small(daemon, transient=False) as guest:
        xml = saved(site, guest)
        words = ("--guest", guest.address, "--xml", xml, "--trust-image", *through, "--json")
        site.run("restore", IMAGE, *words, check=5).error("restore.stalled")
        guest.wait_state("shut off")
        assert site.run("inspect", IMAGE, "--json", check=0).json()["state"] == "saved"
        assert not struck.journals(site)


@_WAYS
def test_signal_while_the_load_hangs(daemon: Daemon, site: cli.Site, through: list[str]) -> None:
    with small(daemon, transient=False) as guest:
        xml = saved(site, guest)
        words = ("--guest", guest.address, "--xml", str(xml), "--trust-image", *through, "--json")
        with site.start("restore", IMAGE, *words) as process:
            wait.until(
                lambda: any("pause" in calls(pid) for pid in daemon.guests()),
                what="the read that hangs",
            )
            stopped(process, signal.SIGINT)
        guest.wait_state("shut off")
        site.run("recover", check=0)
        assert site.run("inspect", IMAGE, "--json", check=0).json()["state"] == "saved"
        assert not struck.journals(site)
