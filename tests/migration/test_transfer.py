"""One save and one restore driven: completed, failed, cancelled, lost; and what is reported."""

import asyncio
import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

import pytest
from mapsave import config, errors
from mapsave.migration import guest_state, incoming, outgoing, pace, parameters, progress, stall
from mapsave.monitor import qmp
from mapsave.monitor.session import Session

from tests.kit import wait
from tests.kit.emulated import Emulated
from tests.kit.emulated import emulated as kit_emulated

Start = Callable[..., AbstractContextManager[Emulated]]

M = 1 << 20
SLOW = ("--pattern", "random", "--throttle", str(M))


@pytest.fixture(params=get_args(config.EmulatedVersion))
def emulated(request: pytest.FixtureRequest) -> Start:
    """Start an emulator: of each version."""
    return functools.partial(kit_emulated, version=request.param)


async def save(
    session: Session,
    path: Path,
    *,
    live: bool = False,
    pace: pace.Pace | None = None,
    **more: Any,
) -> Any:
    """Save with mapped-ram and multifd, as an operation does it."""
    found = await parameters.query(session)
    wanted = {"max-bandwidth": 0, **more}
    async with parameters.configured(session, found, wanted):
        phases = progress.Phases()
        return await outgoing.save(session, str(path), M, phases, live=live, pace=pace)


async def active(session: Session) -> None:
    """Wait until QEMU writes."""
    while (await outgoing.query(session)).status != "active":  # noqa: ASYNC110 (it is QEMU's)
        await asyncio.sleep(0.005)


async def restore(session: Session, path: Path) -> None:
    """Load as an operation does it."""
    found = await parameters.query(session)
    async with parameters.configured(session, found, {}):
        await incoming.restore(session, str(path), M, stall.Watch(30.0, 0, lambda: None))


async def test_saved_and_restored(tmp_path: Path, emulated: Start) -> None:
    with emulated(tmp_path / "s", "--pattern", "random") as source:
        async with qmp.connected(source.path) as session:
            await session.pause()
            outcome = await save(session, tmp_path / "image")
            assert outcome.status == "completed"
            assert outcome.ram.normal == 1024
            assert outcome.error is None
            assert await guest_state.run_state(session) == "postmigrate"
            assert await outgoing.query(session) == outcome
            # One that is over before anybody looks has a progress all the same.
            seen: list[progress.Progress] = []
            await outgoing.follow(session, progress.Phases(seen.append))
            assert [(each.done_bytes, each.total_bytes) for each in seen] == [(4 * M, 4 * M)]
    with emulated(tmp_path / "d", "--incoming", "defer", "-S") as destination:
        async with qmp.connected(destination.path) as session:
            await restore(session, tmp_path / "image")
            assert await guest_state.left(session, "inmigrate") == "paused"


async def test_refused_at_once(tmp_path: Path, emulated: Start) -> None:
    with emulated(tmp_path / "s") as source:
        async with qmp.connected(source.path) as session:
            with pytest.raises(errors.CommandRefused, match="No such file"):
                await save(session, tmp_path / "none" / "image")
            assert await guest_state.run_state(session) == "running"


async def test_failed_later(tmp_path: Path, emulated: Start) -> None:
    """The capability return-path lets a file save fail at its very end."""
    with emulated(tmp_path / "s") as source:
        async with qmp.connected(source.path) as session:
            states = [{"capability": name, "state": True} for name in ("mapped-ram", "return-path")]
            await session.execute("migrate-set-capabilities", {"capabilities": states})
            with pytest.raises(errors.SaveFailed, match="migration as failed: Unable to") as caught:
                await outgoing.save(
                    session, str(tmp_path / "image"), M, progress.Phases(), live=False
                )
            assert caught.value.data["status"] == "failed"
            assert caught.value.data["qemu_error"] in caught.value.message
            assert await guest_state.left(session, "finish-migrate") == "running"


async def test_cancelled(tmp_path: Path, emulated: Start) -> None:
    with emulated(tmp_path / "s", *SLOW, memory="32M") as source:
        async with qmp.connected(source.path) as session:
            task = asyncio.ensure_future(save(session, tmp_path / "image"))
            await active(session)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await outgoing.query(session)).status == "cancelled"
            assert await guest_state.run_state(session) == "running"
            assert (await outgoing.cancel(session)).status == "cancelled"


async def test_qemu_lost_while_it_saves(tmp_path: Path, emulated: Start) -> None:
    with emulated(tmp_path / "s", *SLOW, memory="32M") as source:
        async with qmp.connected(source.path) as session:
            task = asyncio.ensure_future(save(session, tmp_path / "image"))
            await active(session)
            source.kill()
            with pytest.raises(errors.MonitorLost):
                await asyncio.wait_for(task, wait.LONG)


async def test_following_a_save_that_somebody_else_began(tmp_path: Path, emulated: Start) -> None:
    reports: list[progress.Progress] = []
    throttle = ("--pattern", "random", "--throttle", str(16 * M))
    with emulated(tmp_path / "s", *throttle, memory="16M") as source:
        async with qmp.connected(source.path) as session:
            await session.execute(
                "migrate-set-capabilities",
                {"capabilities": [{"capability": "mapped-ram", "state": True}]},
            )
            await session.execute("migrate", {"uri": f"file:{tmp_path}/image"})
            outcome = await outgoing.follow(session, progress.Phases(reports.append))
            assert outcome.status == "completed"
    assert any(0 < report.done_bytes < report.total_bytes for report in reports)


async def test_live_save_of_a_busy_guest_ends(
    tmp_path: Path, emulated: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer dirties faster than the disk takes it, so it is paused after some passes."""
    monkeypatch.setattr(outgoing, "LIVE_PASSES", 2)
    slow = ("--writer", "--throttle", str(8 * M))
    with emulated(tmp_path / "s", *slow, memory="4M") as source:
        async with qmp.connected(source.path) as session:
            await session.execute("migrate-set-parameters", {"downtime-limit": 1})
            outcome = await asyncio.wait_for(
                save(session, tmp_path / "image", live=True), wait.LONG
            )
            assert outcome.status == "completed"
            assert await guest_state.run_state(session) == "postmigrate"


async def test_restore_of_what_is_no_image(tmp_path: Path, emulated: Start) -> None:
    (tmp_path / "image").write_bytes(bytes(2 * M))
    with emulated(tmp_path / "d", "--incoming", "defer") as destination:
        async with qmp.connected(destination.path) as session:
            with pytest.raises(errors.RestoreFailed, match="could not load the image") as caught:
                await restore(session, tmp_path / "image")
            told = caught.value.data["qemu_error"]
            assert told.startswith("load of migration failed")
            assert told in caught.value.message
            # It lives, but is of no further use.
            with pytest.raises(errors.MapsaveError):
                await asyncio.wait_for(restore(session, tmp_path / "image"), wait.LONG)


async def test_qemu_lost_while_it_loads(tmp_path: Path, emulated: Start) -> None:
    with emulated(tmp_path / "s", "--pattern", "random") as source:
        async with qmp.connected(source.path) as session:
            await save(session, tmp_path / "image")
    os.truncate(tmp_path / "image", 3 * M)
    with emulated(tmp_path / "d", "--incoming", "defer") as destination:
        async with qmp.connected(destination.path) as session:
            with pytest.raises(errors.MonitorLost):
                await asyncio.wait_for(restore(session, tmp_path / "image"), wait.LONG)


def test_phases_add_up_and_are_reported() -> None:
    reports: list[progress.Progress] = []
    phases = progress.Phases(reports.append)
    for phase in ("write", "sync", "write"):
        phases.enter(phase)
    assert list(phases.seconds()) == ["write", "sync"]
    assert [report.phase for report in reports] == ["write", "sync", "write"]
    assert sum(phases.seconds().values()) <= phases.total
    phases.progress(75, 100)
    assert (reports[-1].done_bytes, reports[-1].total_bytes) == (75, 100)
    assert reports[-1].phase == "write"


def test_time_to_go() -> None:
    assert progress.Progress("write", 75, 100, 5.0).eta_s == 5.0
    assert progress.Progress("write", 175, 100, 5.0).eta_s == 0.0
    assert progress.Progress("write", 0, 100).eta_s is None
    assert progress.Progress("write", 5, 0, 5.0).eta_s is None


async def test_a_save_that_crawls_is_cancelled(tmp_path: Path) -> None:
    """The emulator writes 1 MiB a second; predicted are 0.1 s for all 16."""
    with kit_emulated(tmp_path / "s", *SLOW, memory="16M") as source:
        async with qmp.connected(source.path) as session:
            await session.pause()
            begun = asyncio.get_running_loop().time()
            with pytest.raises(pace.TooSlow) as caught:
                await save(session, tmp_path / "image", pace=pace.Pace((0.1,), 0.1))
            assert asyncio.get_running_loop().time() - begun > pace.WINDOW
            assert caught.value.seconds > 6
            assert await guest_state.run_state(session) == "paused"
            assert (await outgoing.query(session)).status == "cancelled"
