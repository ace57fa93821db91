"""A save waits for the disk off the event loop: a service goes on with its other work in the
meantime."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave.operations import journal, save, save_request

from tests.kit import cli, emulated

STEPS = ["begin", "label", "hand-over", "pause", "migrate", "complete", "commit", "committed"]


async def test_no_fsync_is_waited_for_on_the_event_loop(
    site: cli.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops, seen, told = threading.get_ident(), [], []

    def watched(name: str, plain: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            seen.append((name, threading.get_ident() == loops))
            plain(fd)

        return call

    def saw(step: str, _: Any) -> None:
        told.append((step, threading.get_ident() == loops))

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    with emulated.guest(site, "web"):
        found = configuration.load(site.config, {})
        with journal.watched(journal.Watch("0123456789ab", saw)):
            await save.save(found.guest("web"), found, save_request.Request(), lambda _: None)
    assert len(seen) > len(STEPS)
    assert {name for name, is_on_the_loop in seen if is_on_the_loop} == set()
    # Whoever watches is of the loop, and is called there.
    assert told == [(step, True) for step in STEPS]
