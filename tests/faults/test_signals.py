"""Ctrl-C, SIGTERM and time limits: the save is undone, whole, and the guest runs again."""

import signal
import sys

import pytest

from tests.faults import struck
from tests.faults.slow import IMAGE, NAME, await_writing, looked_at, slow_guest
from tests.kit import cli, patterns, qemu, state

_ENDLESS = "256K"  # bytes a second, of 64 MiB


def _nothing_left(site: cli.Site) -> None:
    assert not struck.journals(site)
    assert not list(site.images.iterdir())


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        [signal.SIGINT],
        [signal.SIGHUP],
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGINT, signal.SIGTERM, signal.SIGINT],
    ],
    ids=lambda signals: "+".join(each.name for each in signals),
)
def test_signal_in_the_middle_of_a_save(site: cli.Site, signals: list[signal.Signals]) -> None:
    with slow_guest(site, _ENDLESS) as path:
        before = looked_at(path)
        with site.start("save", NAME, "--image", IMAGE, "--json") as saving:
            await_writing(site)
            for each in signals:
                saving.send_signal(each)
            cli.ended(saving, check=9)
        state.assert_left_as_found(before, looked_at(path))
        _nothing_left(site)


def test_time_limit(site: cli.Site) -> None:
    with slow_guest(site, _ENDLESS) as path:
        before = looked_at(path)
        result = site.run("save", NAME, "--image", IMAGE, "--timeout", "1s", "--json", check=4)
        assert result.error_id() == "save.timeout"
        state.assert_left_as_found(before, looked_at(path))
        _nothing_left(site)


@pytest.mark.cancels
@pytest.mark.parametrize(
    ("step", "signals"),
    [
        ("begin", "TERM"),
        ("label", "INT+INT"),
        ("hand-over", "TERM"),
        ("pause", "INT+INT"),
        ("migrate", "TERM"),
        ("migrate", "INT+INT"),
        ("complete", "TERM"),
        ("complete", "INT+INT"),
    ],
)
def test_signal_at_a_step(site: cli.Site, step: str, signals: str) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        result = struck.run(site, "after", step, signals, "save", NAME, "--image", IMAGE)
        assert result.returncode == 9, result
        state.assert_left_as_found(before, guest.state())
        _nothing_left(site)


def test_signal_behind_the_commit_is_too_late(site: cli.Site) -> None:
    """What is about to be committed is: the guest must not go on beside its image."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        result = struck.run(site, "after", "commit", "TERM", "save", NAME, "--image", IMAGE)
        assert result.returncode == 0, result
        guest.wait()
        assert [path.name for path in site.images.iterdir()] == [IMAGE]
        assert not struck.journals(site)


# Ctrl-C as soon as the journal is removed; the work stands still until it has been passed on.
_AT_THE_END = """
import os, signal, sys, time
from mapsave.cli import main
from mapsave.operations import journal
plain = journal._end
def end(*arguments):
    plain(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
journal._end = end
main.main(sys.argv[1:])
"""


def _interrupted_at_the_end(site: cli.Site, *arguments: str) -> None:
    site.run(*arguments, check=0, command=[sys.executable, "-c", _AT_THE_END])


def test_signal_when_all_is_done_is_too_late(site: cli.Site) -> None:
    """Not even while connections are closed may a commit become an interruption."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _interrupted_at_the_end(site, "save", NAME, "--image", IMAGE, "--then", "leave")
        assert guest.status() == "postmigrate"
        guest.kill()
        guest.wait()
        _interrupted_at_the_end(site, "restore", IMAGE)
        with guest.successor() as restored:
            assert restored.status() == "running"


@pytest.mark.parametrize("step", ["launch", "load"])
def test_signal_in_a_restore(site: cli.Site, step: str) -> None:
    """The destination goes, and the image is as before."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        result = struck.run(site, "after", step, "TERM", "restore", IMAGE)
        assert result.returncode == 9, result
        assert not struck.journals(site)
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"
