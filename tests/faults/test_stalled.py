"""Storage that fails under a restore: QEMU hangs or dies of it, and the restore ends all the same.

On a page QEMU 10.0 dies of EIO; on a bitmap it may hang forever, as where storage never answers.
"""

import asyncio
import errno
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from mapsave import config as configuration
from mapsave import errors
from mapsave.migration import outgoing, stall
from mapsave.operations import recover, save, save_request

from tests.faults import struck
from tests.faults.in_time import calls, stopped
from tests.kit import cli, inject, patterns, processes, qemu, wait
from tests.qemu import scene

# Within the one RAM block that has pages, after its first ones.
_PAGES = {"first": 4 << 20, "count": -1}
_DEAD_PAGES = inject.Rule("preadv", "hang", **_PAGES)


def bitmap(site: cli.Site, image: Path) -> inject.Rule:
    """Return the rule by which the read of a bitmap after the largest block's pages hangs."""
    blocks = site.run("inspect", image, "--json", check=0).json()["ram_blocks"]
    offset = sorted(block["bitmap_offset"] for block in blocks)[1]
    return inject.Rule("preadv", "hang", first=offset, last=offset)


def launch(saved: scene.Saved, *rules: inject.Rule) -> list[str]:
    """Return a command that starts the guest on storage that fails by these rules."""
    environment = inject.environment(*rules).items()
    return ["env", *(f"{key}={value}" for key, value in environment), *saved.guest.argv]


@contextmanager
def failing(site: cli.Site, rule: inject.Rule | None, seconds: str = "1s") -> Iterator[scene.Saved]:
    """Save a guest whose destination is on storage that fails, on a bitmap without ``rule``."""
    site.settings["restore"] = {"stall": seconds, "instant": "off"}
    with scene.saved(site) as saved:
        rule = rule or bitmap(site, saved.image)
        site.add_guest("web01", saved.guest.qmp, launch=launch(saved, rule))
        yield saved


def as_before(site: cli.Site, saved: scene.Saved) -> None:
    """Check that nothing is left, and that the image restores on storage that works."""
    assert scene.state_of(site, saved.image) == "saved"
    assert not struck.journals(site)
    assert not processes.strays()
    del site.settings["restore"]  # what is slow is not to be given up here
    site.add_guest("web01", saved.guest.qmp, launch=saved.guest.argv)
    site.run("restore", saved.image, check=0)
    with saved.guest.successor() as restored:
        assert restored.status() == "prelaunch"


@pytest.mark.parametrize("rule", [None, _DEAD_PAGES], ids=["bitmap", "pages"])
def test_launched_destination_is_killed(site: cli.Site, rule: inject.Rule | None) -> None:
    with failing(site, rule) as saved:
        result = site.run("restore", saved.image, "--json", check=5)
        error = result.error()
        assert error["id"] == "restore.stalled"
        assert "was killed" in error["message"]
        as_before(site, saved)


@contextmanager
def waiting(saved: scene.Saved, rule: inject.Rule) -> Iterator[qemu.Qemu]:
    """Run a QEMU that waits for its guest, on storage that fails."""
    with qemu.running(
        name="other", memory="32M", incoming=True, env=inject.environment(rule)
    ) as destination:
        yield destination


def test_destination_of_somebody_else_is_named(site: cli.Site) -> None:
    with failing(site, None) as saved:
        rule = bitmap(site, saved.image)
        with waiting(saved, rule) as destination:
            into = ("restore", saved.image, "--into", destination.address)
            done = site.run(*into, "--json", check=5)
            error = done.error("restore.stalled")
            assert error["data"]["pid"] == destination.pid
            assert f"kill -9 {destination.pid}" in error["hint"]
            assert destination.alive()
            assert scene.state_of(site, saved.image) == "saved"
            assert struck.journals(site)
            destination.kill()
            destination.wait()
        site.run("recover", check=0)
        as_before(site, saved)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_a_launched_destination_hangs(site: cli.Site, number: signal.Signals) -> None:
    with failing(site, None, "10m") as saved:
        with site.start("restore", saved.image, "--json") as process:
            await_hang()
            error = stopped(process, number)
            assert "everything was rolled back" in error["message"]
        as_before(site, saved)


def test_signal_while_a_destination_of_somebody_else_hangs(site: cli.Site) -> None:
    with failing(site, None, "10m") as saved:
        with waiting(saved, bitmap(site, saved.image)) as destination:
            into = ("restore", saved.image, "--into", destination.address)
            with site.start(*into, "--json") as process:
                await_hang()
                (left,) = stopped(process)["data"]["left"]
                assert (left["operation"], left["pid"]) == ("restore", destination.pid)
            assert destination.alive()
            destination.kill()
            destination.wait()
        site.run("recover", check=0)
        as_before(site, saved)


def await_hang() -> None:
    """Wait until a thread of a destination hangs in its read."""

    def hangs() -> bool:
        return any("pause" in calls(pid) for pid in processes.strays())

    wait.until(hangs, what="the read that hangs")


def test_time_limit_while_the_destination_hangs(site: cli.Site) -> None:
    with failing(site, None, "10m") as saved:
        result = site.run("restore", saved.image, "--timeout", "2s", "--json", check=5)
        assert result.error_id() == "restore.timeout"
        as_before(site, saved)


def test_qemu_that_dies_says_how(site: cli.Site) -> None:
    rule = inject.Rule("preadv", "errno", errno.EIO, **_PAGES)
    with failing(site, rule) as saved:
        error = site.run("restore", saved.image, "--json", check=5).error()
        assert "killed by SIGSEGV" in error["message"]
        as_before(site, saved)


def _unprivileged() -> list[str]:
    """Return what takes the right away to read the io counters of others (proc(5))."""
    return ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]


@pytest.mark.parametrize("sight", [[], _unprivileged()], ids=["io counters", "no io counters"])
def test_slow_storage_is_waited_for(site: cli.Site, sight: Sequence[str]) -> None:
    """It is twice as slow as the stall allows for all of it, but never still."""
    slow = inject.Rule("preadv", "delay", 400_000, count=-1)
    with failing(site, slow, "6s") as saved:
        began = time.monotonic()
        restore = ("restore", saved.image, "--channels", "1", "--json")
        site.run(*restore, under=sight, check=0)
        assert time.monotonic() - began > 12
        with saved.guest.successor() as restored:
            assert restored.status() == "prelaunch"


@pytest.mark.root
def test_stall_is_seen_without_io_counters(site: cli.Site) -> None:
    with failing(site, None) as saved:
        result = site.run("restore", saved.image, "--json", under=_unprivileged())
        assert result.error_id() == "restore.stalled"
        as_before(site, saved)


async def test_process_that_is_not_in_sight_gets_the_time_of_a_slow_disk() -> None:
    watch = stall.Watch(0.2, 4 << 20, lambda: None)  # half a second for the image
    began = time.monotonic()
    with pytest.raises(errors.RestoreStalled, match="cannot be seen"):
        await watch.until(asyncio.sleep(wait.LONG))
    assert time.monotonic() - began > 0.6


async def test_save_that_writes_nothing(site: cli.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel hangs in its write, and a cancel does not help: it is all left to recovery."""
    monkeypatch.setattr(outgoing, "STALL", 1.0)
    monkeypatch.setattr(outgoing, "CANCEL_TIMEOUT", 0.5)
    rule = inject.environment(inject.Rule("pwritev", "hang"))
    with qemu.guest(site, "web01", memory="32M", ram=patterns.dense, env=rule) as guest:
        config = configuration.load(site.config, {})
        # Others that are at work while this one is given up would make QEMU die now and then.
        wanted = {"image": "one.mapsave", "channels": 1}
        request = save_request.request(config, config.guests["web01"], **wanted)
        with pytest.raises(
            errors.SaveFailed, match=r"storage hangs|QEMU does not answer"
        ) as failed:
            async with asyncio.timeout(wait.LONG):
                await save.save(config.guests["web01"], config, request)
        assert "mapsave recover" in str(failed.value.hint)
        assert struck.journals(site)
        assert guest.alive()
        async with asyncio.timeout(wait.LONG):
            done = await recover.recover(config)
        assert done["operations"][0]["error"]["id"] in ("save.stalled", "save.failed"), done
        assert struck.journals(site)
