"""Slots: limits hold, the order is fair, cancelling loses nothing, bandwidth is shared."""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.service.slots import Slots

from tests.kit import cli, emulated, service

MIB = 1 << 20


class Save:
    """One save that takes a slot, and gives it back when told to."""

    def __init__(self, slots: Slots, device: int) -> None:
        self.device = device
        self.share: int | None = None
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(slots))

    async def _run(self, slots: Slots) -> None:
        async with slots.acquire(self.device) as self.share:
            await self.end.wait()
        self.share = None

    @property
    def runs(self) -> bool:
        return self.share is not None


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@contextlib.contextmanager
def ended(saves: list[Save]) -> Iterator[list[Save]]:
    try:
        yield saves
    finally:
        for save in saves:
            save.task.cancel()


async def test_no_more_at_once_than_the_host_and_the_file_system_allow() -> None:
    slots = Slots(3, 2, None)
    with ended([Save(slots, device) for device in (1, 1, 1, 2, 2, 3)]) as saves:
        await settle()
        # The third for file system 1 waits; the fourth passes it by; then the host is full.
        assert [save.runs for save in saves] == [True, True, False, True, False, False]
        saves[3].end.set()
        await settle()
        assert [save.runs for save in saves] == [True, True, False, False, True, False]
        saves[0].end.set()
        await settle()
        assert [save.runs for save in saves] == [False, True, True, False, True, False]


async def test_the_oldest_comes_first() -> None:
    slots = Slots(1, 1, None)
    with ended([Save(slots, 1) for _ in range(4)]) as saves:
        for number in range(4):
            await settle()
            assert [save.runs for save in saves] == [each == number for each in range(4)]
            saves[number].end.set()


async def test_who_is_cancelled_while_waiting_takes_nothing() -> None:
    slots = Slots(1, 1, None)
    with ended([Save(slots, 1) for _ in range(3)]) as saves:
        await settle()
        saves[1].task.cancel()
        await settle()
        saves[0].end.set()
        await settle()
        assert saves[2].runs


async def test_who_is_cancelled_just_when_its_turn_comes_gives_it_back() -> None:
    slots = Slots(1, 1, None)
    with ended([Save(slots, 1) for _ in range(3)]) as saves:
        await settle()
        saves[0].end.set()
        # The turn is given in the first step of this loop, the task would take it in the next.
        await asyncio.sleep(0)
        saves[1].task.cancel()
        await settle()
        assert saves[2].runs


async def test_a_save_that_is_alone_has_all_bandwidth() -> None:
    slots = Slots(4, 4, 100 * MIB)
    with ended([Save(slots, 1)]) as saves:
        await settle()
        assert saves[0].share == 100 * MIB


async def test_those_that_wait_together_share_it() -> None:
    slots = Slots(4, 4, 100 * MIB)
    with ended([Save(slots, 9) for _ in range(2)]) as first:
        await settle()
        # The first began alone, so it has all; the other waits for it, the disk being busy.
        assert [save.share for save in first] == [100 * MIB, None]
        more = [Save(slots, 9) for _ in range(3)]
        with ended(more):
            await settle()
            first[0].end.set()
            await settle()
            assert [save.share for save in (first[1], *more)] == [25 * MIB] * 4


async def test_each_file_system_has_its_own_bandwidth() -> None:
    slots = Slots(4, 2, 100)
    with ended([Save(slots, 1), Save(slots, 2)]) as saves:
        await settle()
        assert [save.share for save in saves] == [100, 100]


async def test_without_a_limit_the_share_is_none() -> None:
    slots = Slots(2, 2, None)
    with ended([Save(slots, 1), Save(slots, 1)]) as saves:
        await settle()
        assert [save.share for save in saves] == [0, 0]


async def test_new_limits_let_those_begin_who_wait() -> None:
    slots = Slots(1, 1, None)
    with ended([Save(slots, 1) for _ in range(3)]) as saves:
        await settle()
        slots.set_limits(3, 2, None)
        await settle()
        assert [save.runs for save in saves] == [True, True, False]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_limits_hold_and_all_come_to_their_turn(seed: int) -> None:
    chance = random.Random(seed)
    bandwidth = chance.choice([None, 1000])
    slots = Slots(4, 2, bandwidth)
    saves: list[Save] = []
    with ended(saves):
        for _ in range(200):
            action = chance.random()
            if action < 0.4:
                saves.append(Save(slots, chance.randrange(3)))
            elif saves:
                chosen = chance.choice(saves)
                chosen.end.set() if action < 0.8 else chosen.task.cancel()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            running = [save for save in saves if save.runs and not save.task.done()]
            assert len(running) <= 4
            for device in range(3):
                here = [save.share or 0 for save in running if save.device == device]
                assert len(here) <= 2
                assert sum(here) <= (bandwidth or 0)
        for _ in range(len(saves) + 1):
            for save in saves:
                save.end.set()
            await settle()
        assert all(save.task.done() for save in saves)


def test_a_request_may_ask_for_less_bandwidth_than_there_is(tmp_path: Path) -> None:
    """The lower of both limits holds, and QEMU is told it."""
    site = cli.Site(tmp_path / "site")
    site.settings["service"] = {"bandwidth": "64M"}
    with emulated.guest(site, "db"), service.running(site) as mapsaved:

        def limit(**more: object) -> object:
            saved = mapsaved.done(kind="save", guest="db", save={"then": "resume", **more})
            return saved["strategy"]["bandwidth_bytes_per_s"]

        assert limit() == 64 * MIB
        assert limit(bandwidth="32M") == 32 * MIB
        assert limit(bandwidth=1 << 40) == 64 * MIB
