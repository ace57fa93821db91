"""Signals that reach a command which has the service do its work: one of them stops it, once."""

from __future__ import annotations

import os
import signal

import pytest

from manager.cli import following


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_first_signal_stops_and_the_next_pass() -> None:
    with following._signals() as stop:
        stop.arm()
        with pytest.raises(following._Told) as told:
            interrupt()
        assert told.value.name == "SIGINT"
        interrupt()
        os.kill(os.getpid(), signal.SIGTERM)


def test_one_that_comes_too_early_is_kept() -> None:
    with following._signals() as stop:
        interrupt()
        with pytest.raises(following._Told):
            stop.arm()
        interrupt()


def test_one_that_comes_too_late_passes() -> None:
    with following._signals() as stop:
        stop.arm()
        stop.disarm()
        interrupt()


def test_handlers_are_back_at_the_end() -> None:
    before = [signal.getsignal(each) for each in following._SIGNALS]
    with following._signals():
        assert signal.getsignal(signal.SIGHUP) not in before
    assert [signal.getsignal(each) for each in following._SIGNALS] == before
