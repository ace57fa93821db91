"""Blocking calls that are left alone, and contexts that wait for them."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
from mapsave import blocking, shielded

from tests.kit import wait


class _Hung:
    """A call that returns 7 once it may, and a context whose ends are noted."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.ends: list[str] = []

    def call(self) -> int:
        assert self.may_end.wait(60)
        self.ends.append("call")
        return 7

    @contextlib.contextmanager
    def context(self) -> Iterator[int]:
        try:
            yield 5
        finally:
            self.ends.append("context")


async def test_no_pool_is_used_up() -> None:
    hung = _Hung()
    async with asyncio.timeout(wait.LONG):
        calls = [asyncio.create_task(blocking.call(hung.call)) for _ in range(100)]
        assert await blocking.call(int, "3") == 3
        hung.may_end.set()
        assert await asyncio.gather(*calls) == [7] * 100


async def test_a_call_is_left_alone_after_its_time() -> None:
    hung = _Hung()
    with pytest.raises(blocking.Hangs, match="no answer"):
        await blocking.within(0.01, hung.call)
    with pytest.raises(blocking.Hangs, match="no answer"):
        blocking.joined(0.01, hung.call)
    hung.may_end.set()
    assert blocking.joined(60, hung.call) == 7


@pytest.mark.parametrize("function", [blocking.within, blocking.joined])
async def test_a_time_limit_of_the_call_itself_is_its_own(function: object) -> None:
    def fail() -> None:
        raise TimeoutError("of the server")

    with pytest.raises(TimeoutError, match="of the server"):
        if function is blocking.joined:
            blocking.joined(60, fail)
        else:
            await blocking.within(60, fail)


async def test_a_context_ends_after_the_calls_that_use_it() -> None:
    hung, left = _Hung(), []
    outer = shielded.entered(hung.context(), left.append, seconds=wait.LONG)
    with pytest.raises(blocking.Hangs):
        async with outer, shielded.entered(hung.context(), seconds=wait.LONG):
            await blocking.within(0.01, hung.call)
    assert left == [5]
    assert hung.ends == []
    hung.may_end.set()
    await blocking.call(lambda: wait.until(lambda: len(hung.ends) == 3))
    assert hung.ends == ["call", "context", "context"]


async def test_a_context_that_is_entered_too_late_is_left() -> None:
    hung = _Hung()

    @contextlib.contextmanager
    def late() -> Iterator[None]:
        hung.call()
        try:
            yield
        finally:
            hung.ends.append("late")

    with pytest.raises(blocking.Hangs):
        async with shielded.entered(late(), seconds=0.01):
            raise AssertionError
    hung.may_end.set()
    await blocking.call(lambda: wait.until(lambda: hung.ends == ["call", "late"]))


async def test_errors_go_through_a_context() -> None:
    hung = _Hung()
    with pytest.raises(ValueError, match="mine"):
        async with shielded.entered(hung.context()):
            raise ValueError("mine")
    async with shielded.entered(contextlib.suppress(ValueError)):
        raise ValueError
    assert hung.ends == ["context"]
