"""What a save asks of a libvirt guest: no fact twice, and many things in one call."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from mapsave import config as configuration
from mapsave import errors
from mapsave.monitor import libvirt_connection, passthrough
from mapsave.operations import save, save_request

from tests.kit import cli, commands
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, NAME, small

T = TypeVar("T")


async def test_a_save_asks_for_no_fact_twice(daemon: Daemon, site: cli.Site) -> None:
    site.add_guest("web", libvirt={"uri": daemon.uri, "domain": NAME})
    config = configuration.load(site.config, {})
    guest = config.guests["web"]
    with small(daemon):
        request = save_request.request(config, guest, image=IMAGE)
        with commands.counted(passthrough.LibvirtSession) as count:
            await save.save(guest, config, request)
    assert commands.asked_twice(count) == []
    assert sum(count.values()) > 60


async def test_queries_made_at_once_go_to_libvirt_together(daemon: Daemon) -> None:
    """Also where one of them is refused; and one that is cancelled does not cancel the others."""
    with small(daemon) as guest:
        async with passthrough.connected(daemon.uri, NAME) as session:
            plain, calls = session.repeatedly, []

            async def counted(command: str, function: Callable[[], T], **how: Any) -> T:
                calls.append(command)
                return await plain(command, function, **how)

            session.repeatedly = counted  # type: ignore[method-assign]
            missing = {"path": "/machine", "property": "nothing"}
            asked = [asyncio.ensure_future(session.execute("query-status")) for _ in range(3)]
            asked.append(asyncio.ensure_future(session.execute("qom-get", missing)))
            asked.append(asyncio.ensure_future(session.execute("query-name")))
            await asyncio.sleep(0)
            asked[0].cancel()
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert calls == ["query-status"]
            assert isinstance(found[0], asyncio.CancelledError)
            assert isinstance(found[3], errors.CommandRefused)
            assert found[1] == found[2] == guest.execute("query-status")
            assert found[4] == {"name": NAME}


async def test_one_that_libvirt_does_not_pass_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked after it is asked again, and answered; only that one fails."""
    library = libvirt_connection.monitor_library()
    plain = library.qemuMonitorCommand

    def refusing(domain: Any, text: str, flags: int) -> str:
        if "query-uuid" in text:
            raise libvirt_connection.library().libvirtError("refused")
        return str(plain(domain, text, flags))

    monkeypatch.setattr(library, "qemuMonitorCommand", refusing)
    with small(daemon):
        async with passthrough.connected(daemon.uri, NAME) as session:
            names = ("query-name", "query-uuid", "query-version")
            asked = (session.execute(name) for name in names)
            name, uuid, version = await asyncio.gather(*asked, return_exceptions=True)
            assert name == {"name": NAME}
            assert isinstance(uuid, errors.CommandRefused)
            assert version["qemu"]["major"] == session.version.major
