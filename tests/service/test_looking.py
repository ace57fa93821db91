"""Whoever looks into images does not cost the saves their threads, however slow the disk is."""

import asyncio
import threading
import weakref
from concurrent import futures

import pytest
from mapsave import errors
from mapsave.service.reader_pool import Looking

from tests.kit import cli, emulated, service, wait
from tests.service.impatient import hanging_until

_READERS = 40
_ADMITTED = 18  # two that look, and those that may wait


async def test_it_gives_what_the_function_gives() -> None:
    def fail(words: str) -> None:
        raise errors.ImageNotFound(words)

    with Looking(1, 4) as looking:
        assert await looking.run(int, "7") == 7
        with pytest.raises(errors.ImageNotFound, match="gone"):
            await looking.run(fail, "gone")
        assert await looking.run(threading.current_thread) is not threading.current_thread()


async def test_so_many_at_once_and_so_many_that_wait() -> None:
    hung, at_it = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        at_it.release()
        assert hung.wait(wait.LONG)

    async with asyncio.timeout(wait.LONG):
        with Looking(2, 1) as looking:
            asked = [asyncio.create_task(looking.run(hang)) for _ in range(3)]
            for _ in range(2):
                assert await asyncio.to_thread(at_it.acquire, timeout=wait.LONG)
            assert not at_it.acquire(blocking=False)
            with pytest.raises(errors.ServiceBusy):
                await looking.run(hang)
            asked[0].cancel()  # its thread is at it all the same
            await asyncio.wait(asked[:1])
            with pytest.raises(errors.ServiceBusy):
                await looking.run(hang)
            hung.set()
            await asyncio.gather(*asked[1:])
            await looking.run(hang)


async def test_who_is_cancelled_while_it_waits_leaves_its_place() -> None:
    hung, at_it = threading.Event(), threading.Event()

    def hang() -> None:
        at_it.set()
        assert hung.wait(wait.LONG)

    async with asyncio.timeout(wait.LONG):
        with Looking(1, 1) as looking:
            first = asyncio.create_task(looking.run(hang))
            assert await asyncio.to_thread(at_it.wait, wait.LONG)
            second = asyncio.create_task(looking.run(int, "2"))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            third = asyncio.create_task(looking.run(int, "3"))
            await asyncio.sleep(0)
            hung.set()
            await first
            assert await third == 3


def test_a_hung_file_system_takes_no_thread_that_a_save_needs(site: cli.Site) -> None:
    answers = site.directory / "answers"
    with emulated.guest(site, "db"), service.running(site) as healthy:
        healthy.done(kind="save", guest="db", save={"image": "one.mapsave", "then": "resume"})
        assert healthy.stop() == 0
        with (
            service.started(site, command=hanging_until(answers)) as mapsaved,
            futures.ThreadPoolExecutor(_READERS) as readers,
        ):
            service.await_answer(mapsaved)
            try:
                asked = [
                    readers.submit(mapsaved.request, "GET", "/v1/images/one.mapsave")
                    for _ in range(_READERS)
                ]
                refused = _READERS - _ADMITTED  # once all are, all have asked
                wait.until(lambda: sum(e.done() for e in asked) == refused, what="those refused")
                for _ in range(8):
                    mapsaved.begin(kind="verify", image="one.mapsave")
                mapsaved.done(kind="save", guest="db", save={"then": "resume"})
                busy = mapsaved.request("GET", "/v1/images")
                assert (busy.status, busy.error) == (503, "service.busy")
                assert int(busy.headers["Retry-After"]) > 0
            finally:
                answers.touch()
            statuses = [each.result().status for each in asked]
            assert set(statuses) == {200, 503}
            assert statuses.count(200) == _ADMITTED


async def test_what_was_returned_is_not_kept() -> None:
    """An idle thread would hold it until it has other work: the images of a large directory."""
    with Looking(1, 1) as looking:
        returned = await looking.run(set)
        held = weakref.ref(returned)
        del returned
        await asyncio.to_thread(wait.until, lambda: held() is None, what="its end")
