"""Capabilities and parameters are restored on every way out, whatever they were."""

import asyncio
from typing import Any

import msgspec
import pytest
from mapsave import errors
from mapsave.migration import parameters
from mapsave.monitor.session import Session

from tests.kit.emulated import Emulated

WANTED = {"multifd-channels": 5, "direct-io": True, "max-bandwidth": 0}


async def switch(session: Session, **capabilities: bool) -> None:
    """Set capabilities as an administrator might have left them."""
    states = [
        {"capability": name.replace("_", "-"), "state": state}
        for name, state in capabilities.items()
    ]
    await session.execute("migrate-set-capabilities", {"capabilities": states})


def on(settings: parameters.Settings) -> set[str]:
    return {name for name, state in settings.capabilities.items() if state}


async def test_what_is_in_force_meanwhile(session: Session) -> None:
    found = await parameters.query(session)
    assert on(found) == set()
    async with parameters.configured(session, found, WANTED):
        now = await parameters.query(session)
        assert on(now) == {"mapped-ram", "multifd", "events"}
        assert now.parameters == {**found.parameters, **WANTED}
    assert await parameters.query(session) == found


@pytest.mark.parametrize(
    ("capabilities", "changed"),
    [
        ({"background_snapshot": True}, {}),
        ({"background_snapshot": True, "mapped_ram": True}, {"max-bandwidth": 7}),
        ({"xbzrle": True, "auto_converge": True}, {"xbzrle-cache-size": 4096 * 1024}),
        ({"return_path": True, "switchover_ack": True}, {"downtime-limit": 77}),
        ({"mapped_ram": True, "multifd": True, "events": True}, {"multifd-channels": 9}),
        ({"multifd": True}, {"multifd-compression": "zlib"}),
        ({"mapped_ram": True, "multifd": True}, {"multifd-compression": "zlib"}),
        ({"postcopy_ram": True}, {"tls-creds": "tls0"}),
        ({"pause_before_switchover": True}, {"zero-page-detection": "none"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("error", [None, ZeroDivisionError, asyncio.CancelledError])
async def test_put_back_on_every_way_out(
    session: Session,
    capabilities: dict[str, bool],
    changed: dict[str, Any],
    error: type[BaseException] | None,
) -> None:
    await switch(session, **capabilities)
    if changed:
        await session.execute("migrate-set-parameters", changed)
    found = await parameters.query(session)

    async def body() -> None:
        async with parameters.configured(session, found, WANTED):
            now = await parameters.query(session)
            assert on(now) == {"mapped-ram", "multifd", "events"}
            assert {name: now.parameters[name] for name in WANTED} == WANTED
            assert now.parameters["multifd-compression"] == "none"
            assert now.parameters["tls-creds"] == ""
            if error is not None:
                raise error

    if error is None:
        await body()
    else:
        with pytest.raises(error):
            await body()
    assert await parameters.query(session) == found


async def test_put_back_when_cancelled_at_any_moment(session: Session) -> None:
    found = await parameters.query(session)

    async def body() -> None:
        async with parameters.configured(session, found, WANTED):
            await asyncio.sleep(60)

    for steps in range(0, 60, 5):
        task = asyncio.ensure_future(body())
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await parameters.query(session) == found, f"cancelled after {steps} steps"


async def test_put_back_whole_when_cancelled_again_meanwhile(session: Session) -> None:
    """A signal after a time limit, say, must not tear the undoing apart."""
    found = await parameters.query(session)

    async def body(inside: asyncio.Event) -> None:
        async with parameters.configured(session, found, WANTED):
            inside.set()
            await asyncio.sleep(60)

    for steps in range(6):
        inside = asyncio.Event()
        task = asyncio.ensure_future(body(inside))
        await inside.wait()
        task.cancel()
        await asyncio.sleep(0.0005 * steps)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await parameters.query(session) == found, f"cancelled again after {steps} steps"


async def test_put_back_when_a_value_is_refused(session: Session) -> None:
    found = await parameters.query(session)
    with pytest.raises(errors.CommandRefused, match="between 1 and 255"):
        async with parameters.configured(session, found, {**WANTED, "multifd-channels": 0}):
            pytest.fail("the body must not run")
    assert await parameters.query(session) == found


async def test_what_cannot_be_put_back_is_logged(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    found = await parameters.query(session)
    impossible = parameters.Settings(
        {**found.capabilities, "xbzrle": True, "mapped-ram": True}, found.parameters
    )
    await parameters.put_back(session, impossible)
    assert "settings not restored" in caplog.text
    assert "incompatible with xbzrle" in caplog.text


async def test_error_of_the_body_survives_the_loss_of_qemu(
    session: Session, emulator: Emulated
) -> None:
    found = await parameters.query(session)
    with pytest.raises(ZeroDivisionError):
        async with parameters.configured(session, found, WANTED):
            emulator.kill()
            _ = 1 / 0


async def test_what_an_old_qemu_lacks(session: Session) -> None:
    found = await parameters.query(session)
    assert parameters.missing(found) == []
    capabilities = {k: v for k, v in found.capabilities.items() if k != "mapped-ram"}
    without = {k: v for k, v in found.parameters.items() if k != "direct-io"}
    old = parameters.Settings(capabilities, without)
    assert parameters.missing(old) == ["mapped-ram", "direct-io"]


async def test_journal_round_trip(session: Session) -> None:
    found = await parameters.query(session)
    assert msgspec.convert(msgspec.to_builtins(found), parameters.Settings) == found
