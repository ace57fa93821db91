"""The pair is handed over under an id of its own, and taken back on every way out."""

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator

import pytest
from mapsave import errors
from mapsave.monitor import fdset, qmp
from mapsave.monitor.session import Session

from tests.kit import qemu
from tests.kit.emulated import Emulated

FIRST = 1_000_000


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """Two descriptors."""
    with open(os.devnull) as one, open(os.devnull) as other:
        yield one.fileno(), other.fileno()


def dropped(words: str) -> errors.LabelRefused:
    """Make the error for a descriptor that did not arrive."""
    return errors.LabelRefused(f"dropped: {words}")


async def ids(session: Session) -> set[int]:
    """Return the ids of QEMU's sets."""
    return {entry.id for entry in await fdset.query(session)}


async def test_explicit_id_opaque_and_order(session: Session, pair: tuple[int, int]) -> None:
    number = fdset.free_id(await fdset.query(session))
    assert number == FIRST
    async with fdset.handed_over(session, pair, number, dropped) as path:
        assert path == f"/dev/fdset/{FIRST}"
        (found,) = await fdset.query(session)
        assert found == fdset.FdSet(FIRST, ("mapsave-0", "mapsave-1"))
    assert await fdset.query(session) == []


async def test_sets_of_others_are_neither_used_nor_touched(
    session: Session, pair: tuple[int, int]
) -> None:
    for taken in (0, 1, 7, FIRST, FIRST + 1, FIRST + 3):
        await session.pass_descriptor(pair[0], taken, "somebody else")
    before = await fdset.query(session)
    number = fdset.free_id(await fdset.query(session))
    assert number == FIRST + 2
    async with fdset.handed_over(session, pair, number, dropped):
        assert await ids(session) == {0, 1, 7, FIRST, FIRST + 1, FIRST + 2, FIRST + 3}
    assert await fdset.query(session) == before


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, KeyboardInterrupt])
async def test_taken_back_when_the_body_fails(
    session: Session, pair: tuple[int, int], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        async with fdset.handed_over(session, pair, FIRST, dropped):
            raise error
    assert await fdset.query(session) == []


async def test_taken_back_when_cancelled_half_way(
    session: Session, pair: tuple[int, int], emulator: Emulated
) -> None:
    async def hand_over() -> None:
        async with fdset.handed_over(session, pair, FIRST, dropped):
            await asyncio.sleep(60)

    # Cancelled at whatever moment: before the first descriptor, between the two, or later.
    for steps in range(12):
        task = asyncio.ensure_future(hand_over())
        for _ in range(steps * 3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await fdset.query(session) == [], f"cancelled after {steps * 3} steps"


async def test_taken_back_when_the_second_cannot_be_passed(
    session: Session, pair: tuple[int, int]
) -> None:
    with pytest.raises(errors.MonitorLost, match="Bad file descriptor"):
        async with fdset.handed_over(session, (pair[0], 1 << 20), FIRST, dropped):
            pytest.fail("the body must not run")
    assert await fdset.query(session) == []


async def test_refused_for_another_reason_keeps_its_words(
    session: Session, pair: tuple[int, int]
) -> None:
    with pytest.raises(errors.CommandRefused, match="non-negative"):
        async with fdset.handed_over(session, pair, -1, dropped):
            pytest.fail("the body must not run")
    assert await fdset.query(session) == []


async def test_set_that_somebody_took_meanwhile_is_left_alone(
    session: Session, pair: tuple[int, int]
) -> None:
    await session.pass_descriptor(pair[0], FIRST, "somebody else")
    before = await fdset.query(session)
    with pytest.raises(errors.Busy, match="another client"):
        async with fdset.handed_over(session, pair, FIRST, dropped):
            pytest.fail("the body must not run")
    assert await fdset.query(session) == before


async def test_error_of_the_body_survives_the_loss_of_qemu(
    session: Session, pair: tuple[int, int], emulator: Emulated
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fdset.handed_over(session, pair, FIRST, dropped):
            emulator.kill()
            _ = 1 / 0


async def test_taking_back_what_is_gone(session: Session, pair: tuple[int, int]) -> None:
    await fdset.take_back(session, FIRST)
    async with fdset.handed_over(session, pair, FIRST, dropped):
        await session.execute("remove-fd", {"fdset-id": FIRST})
    assert await ids(session) == set()


@contextlib.contextmanager
def no_room_for_descriptors(pid: int) -> Iterator[None]:
    """Let the kernel take away every descriptor that is sent to the process.

    A process at its limit of open files gets the message without them, exactly as one to which a
    security module denies the file (unix(7), MSG_CTRUNC).
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest_free = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def test_descriptor_that_the_kernel_dropped(pair: tuple[int, int]) -> None:
    with qemu.running(machine="none") as guest:
        async with qmp.connected(str(guest.qmp)) as session:
            with no_room_for_descriptors(guest.pid), pytest.raises(errors.LabelRefused) as caught:
                async with fdset.handed_over(session, pair, FIRST, dropped):
                    pytest.fail("the body must not run")
            assert caught.value.message == "dropped: No file descriptor supplied via SCM_RIGHTS"
            assert await fdset.query(session) == []
            async with fdset.handed_over(session, pair, FIRST, dropped):
                assert await ids(session) == {FIRST}
