"""Guests at once on one file system: each has its part of the channels, and gives it back."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import config
from mapsave.operations import restore, restore_request, save, save_request
from mapsave.plan import sharing

from tests.kit import cli
from tests.kit.emulated import emulated


@contextlib.contextmanager
def others(directory: Path, number: int) -> Iterator[list[sharing.Share]]:
    """Have as many guests on the file system of a directory."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(sharing.joined(fd)) for _ in range(number)]
    finally:
        os.close(fd)


def channels(share: sharing.Share) -> int | None:
    found = share.most(8)
    return found.channels if found is not None else None


def test_each_has_its_part_and_never_less_than_two(tmp_path: Path) -> None:
    for number, part in ((1, None), (2, 4), (3, 2), (9, 2)):
        with others(tmp_path, number) as shares:
            assert {channels(share) for share in shares} == {part}
            assert {share.was_shared for share in shares} == {number > 1}
            assert all(share.most(1) is None for share in shares)


def test_what_has_been_given_back_is_there_for_the_next(tmp_path: Path) -> None:
    with others(tmp_path, 1) as (first,):
        with pytest.raises(ZeroDivisionError), others(tmp_path, 3):
            assert channels(first) == 2
            raise ZeroDivisionError
        assert channels(first) is None
        assert first.was_shared  # what it took says nothing of the disk alone
        with others(Path("/proc"), 1) as (elsewhere,):
            assert channels(elsewhere) is None


async def test_saves_and_restores_share(site: cli.Site, tmp_path: Path) -> None:
    settings = config.load(site.config, {})
    for name, number, expected in (("alone", 0, (8, 4)), ("shared", 7, (2, 2))):
        with others(site.images, number), emulated(tmp_path / "s", memory="8M") as guest:
            target = settings.guest(guest.address)
            request = save_request.request(settings, target, image=name)
            saved = await save.save(target, settings, request)
        with (
            others(site.images, number),
            emulated(tmp_path / "d", "--incoming", "defer", memory="8M") as waiting,
        ):
            request_back = restore_request.Request(str(site.images / name), into=waiting.path)
            back = await restore.restore(settings, request_back)
        assert saved.strategy is not None
        assert back.strategy is not None
        assert (saved.strategy["channels"], back.strategy["channels"]) == expected
        for done in (saved, back):
            assert ("8 guests share" in done.reasons["channels"]) is (number == 7)
    with others(site.images, 1) as (left,):
        assert not left.was_shared


async def test_a_save_that_is_cancelled_gives_its_part_back(site: cli.Site, tmp_path: Path) -> None:
    settings = config.load(site.config, {})
    with emulated(tmp_path / "s", "--throttle", "64K") as guest:
        target = settings.guest(guest.address)
        request = save_request.request(settings, target, image="x")
        with others(site.images, 1) as (other,):
            saving = asyncio.create_task(save.save(target, settings, request))
            while not (site.images / "x.partial").exists():
                assert not saving.done()
                await asyncio.sleep(0.01)
            assert channels(other) == 4
            saving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await saving
            assert channels(other) is None
