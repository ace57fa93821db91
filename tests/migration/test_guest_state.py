"""A guest is resumed into its run state on every way out."""

import asyncio

import pytest
from mapsave import errors
from mapsave.migration import guest_state
from mapsave.monitor.session import Session

from tests.kit.emulated import Emulated


async def test_pause_and_resume(session: Session) -> None:
    assert await guest_state.run_state(session) == "running"
    await session.pause()
    assert await guest_state.run_state(session) == "paused"
    await session.resume()
    assert await guest_state.left(session, "paused") == "running"


@pytest.mark.parametrize("error", [None, ZeroDivisionError, asyncio.CancelledError])
@pytest.mark.parametrize("was_running", [True, False])
async def test_put_back_at_end(
    session: Session, was_running: bool, error: type[BaseException] | None
) -> None:
    async def body() -> None:
        async with guest_state.put_back_at_end(session, was_running=was_running):
            await session.pause()
            if error is not None:
                raise error

    if error is None:
        await body()
    else:
        with pytest.raises(error):
            await body()
    assert await guest_state.run_state(session) == ("running" if was_running else "paused")


async def test_released_stays_paused(session: Session) -> None:
    async with guest_state.put_back_at_end(session, was_running=True) as paused:
        await session.pause()
        paused.release()
    assert await guest_state.run_state(session) == "paused"


async def test_resumed_early_is_not_continued_again(session: Session) -> None:
    async with guest_state.put_back_at_end(session, was_running=True) as paused:
        await session.pause()
        await paused.resume(session)
        seconds = paused.seconds()
        await session.pause()  # somebody else's wish, after ours
        await asyncio.sleep(0.02)
        assert paused.seconds() == seconds
    assert await guest_state.run_state(session) == "paused"


async def test_loss_of_qemu_does_not_hide_the_error(session: Session, emulator: Emulated) -> None:
    with pytest.raises(ZeroDivisionError):
        async with guest_state.put_back_at_end(session, was_running=True):
            await session.pause()
            emulator.kill()
            _ = 1 / 0


async def test_waiting_has_an_end(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_state, "_SETTLE_TIMEOUT", 0.05)
    with pytest.raises(errors.MonitorTimeout, match="remains running"):
        await guest_state.left(session, "running")
