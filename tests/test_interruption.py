"""Signals that reach a command: one of them stops it, once, whichever thread gets it."""

import os
import signal
import threading

import pytest
from mapsave.cli import interruption
from mapsave.operations import journal

from tests.kit import wait


def interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_first_signal_cancels_and_the_next_pass() -> None:
    stop, cancelled = interruption.Stop(), threading.Event()
    calls: list[str | None] = []

    def cancel() -> None:
        calls.append(stop.name)
        cancelled.set()

    def work() -> str:
        with stop.cancels(cancel):
            interrupt()
            assert cancelled.wait(wait.LONG)
            interrupt(signal.SIGTERM)
        return "undone"

    assert interruption.run(work, stop) == "undone"
    assert calls == ["SIGINT"]


def test_one_that_comes_before_is_kept() -> None:
    stop, calls = interruption.Stop(), []
    stop.signal(signal.SIGTERM)
    with stop.cancels(lambda: calls.append(1)):
        assert calls == [1]


def test_one_that_comes_when_all_is_done_does_not_spoil_the_report() -> None:
    stop = interruption.Stop()

    def work() -> str:
        with stop.cancels(lambda: pytest.fail("there was nothing to cancel")):
            pass
        interrupt()
        return "done"

    assert interruption.run(work, stop) == "done"


def test_signal_that_another_thread_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread is the one that has to notice."""
    monkeypatch.setattr(journal, "_unfinished", {})  # of other tests in this process
    stop = interruption.Stop()

    def work() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        threading.Event().wait(60)

    with pytest.raises(interruption.Abandoned) as abandoned:
        interruption.run(work, stop)
    assert abandoned.value.error.message == "interrupted by SIGTERM; nothing is left to undo"


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise KeyError("words")

    with pytest.raises(KeyError, match="words"):
        interruption.run(work, interruption.Stop())


def test_handlers_are_back_at_the_end() -> None:
    before = [signal.getsignal(each) for each in interruption.SIGNALS]
    assert interruption.run(lambda: signal.getsignal(signal.SIGHUP), interruption.Stop()) not in (
        before
    )
    assert [signal.getsignal(each) for each in interruption.SIGNALS] == before
