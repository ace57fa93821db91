"""Saves that crawl: cancelled, and restarted another way, while the guest is still paused."""

import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mapsave.image import partial_names
from mapsave.plan import probe

from tests.kit import cli, inject, patterns, qemu, ram, raw, state, wait
from tests.kit.outcomes import COMMITTED

# Each of the channels' requests; 8 of them are in flight.
SLOW = inject.Rule("pwritev", "delay", 700_000, path=".partial", count=-1)
NAME = "guest"


def saved(site: cli.Site, *options: str, then: str = "leave") -> dict[str, Any]:
    """Save the guest of that name, its directory having been measured while it was fast."""
    return site.run("save", NAME, "-o", "x", "--then", then, *options, "--json", check=0).json()


@pytest.fixture(autouse=True)
def measured(site: cli.Site) -> None:
    """Have a directory that was a fast disk when it was measured, whatever else the host does."""
    site.run("probe", check=0)
    (path,) = (site.state / "probes").iterdir()
    figures = msgspec.structs.replace(probe.TYPICAL, measured=time.time())
    path.write_bytes(msgspec.json.encode(figures))


@pytest.mark.cancels
def test_once_and_the_image_is_whole(site: cli.Site, tmp_path: Path) -> None:
    """The storage is as slow the second time, and that is waited for."""
    with qemu.running(
        machine="none",
        memory="64M",
        name=NAME,
        ram=patterns.dense,
        paused=False,
        env=inject.environment(SLOW),
    ) as guest:
        site.add_guest(NAME, guest.qmp)
        before = guest.state()
        done = saved(site)
        content = guest.snapshot_ram(tmp_path / "ram")
        first, second = done["plan"]["restarted"], done["strategy"]
        assert first["direct_io"] and not second["direct_io"]
        assert any("was cancelled and restarted" in text for text in done["warnings"])
        assert done["plan"]["took_s"] > 1
        assert guest.state().parameters == before.parameters
        shown = site.run("inspect", "x", "--json", check=0).json()
        assert shown["strategy"] == second and shown["plan"] == done["plan"]
        site.run("verify", "x", check=0)
    with qemu.running(machine="none", memory="64M", incoming=True) as waiting:
        site.run("restore", "x", "--paused", "--into", waiting.address, check=0)
        ram.assert_same(content, waiting.ram)


@pytest.mark.parametrize("options", [("--live",), ("--direct-io", "on", "--zero-pages", "multifd")])
def test_not_while_the_guest_runs_nor_against_the_settings(
    site: cli.Site, options: tuple[str, ...]
) -> None:
    with qemu.running(
        memory="48M", name=NAME, ram=patterns.dense, paused=False, env=inject.environment(SLOW)
    ) as guest:
        site.add_guest(NAME, guest.qmp)
        done = saved(site, *options)
        assert "restarted" not in done["plan"]


def test_not_beside_another_save(site: cli.Site) -> None:
    (site.images / partial_names.partial_name("other")).touch()
    with qemu.running(
        memory="48M", name=NAME, ram=patterns.dense, env=inject.environment(SLOW)
    ) as guest:
        site.add_guest(NAME, guest.qmp)
        assert "restarted" not in saved(site)["plan"]


@pytest.mark.cancels
def test_a_failure_of_the_second_try_puts_the_guest_back(site: cli.Site) -> None:
    # The bitmaps come when all channels are done: of one that fails amid others QEMU may die.
    bitmaps = inject.Rule(
        "pwritev", "errno", 28, path=".partial", first=raw.MIB, last=2 * raw.MIB - 1, count=-1
    )
    with qemu.running(
        memory="48M",
        name=NAME,
        ram=patterns.dense,
        paused=False,
        env=inject.environment(SLOW, bitmaps),
    ) as guest:
        site.add_guest(NAME, guest.qmp)
        before = guest.state()
        with site.start("save", NAME, "-o", "x", "--json") as saving:
            _await_restart(site, saving)
            cli.ended(saving, check=4).error("save.failed")
        state.assert_left_as_found(before, guest.state())
        assert not list(site.images.iterdir())


def _await_restart(site: cli.Site, saving: subprocess.Popen[str]) -> None:
    """Wait until QEMU was asked a second time, or it is known that it will not be."""
    wait.until(lambda: _migrations(site) == 2 or saving.poll() is not None, what="the restart")


def _migrations(site: cli.Site) -> int:
    """Return how often QEMU was asked to save, by the journal."""
    lines = [line for path in site.state.glob("journal/*") for line in path.read_text().split("\n")]
    return sum('"migrate"' in line for line in lines)


@pytest.mark.cancels
def test_killed_while_it_is_written_again(site: cli.Site, tmp_path: Path) -> None:
    """QEMU goes on; what recovery commits says how it was written in the end."""
    with qemu.running(
        machine="none", memory="64M", name=NAME, ram=patterns.dense, env=inject.environment(SLOW)
    ) as guest:
        site.add_guest(NAME, guest.qmp)
        content = guest.snapshot_ram(tmp_path / "ram")
        with site.start("save", NAME, "-o", "x", "--then", "leave") as saving:
            _await_restart(site, saving)
            guest.control.execute("query-status")
            wait.until(
                lambda: guest.control.execute("query-migrate")["status"] == "active",
                what="the second save",
            )
            saving.kill()
            saving.wait(wait.LONG)
        done = site.run("recover", "--json", check=0).json()["operations"]
        assert done[0]["outcome"] == COMMITTED
        shown = site.run("inspect", "x", "--json", check=0).json()
        assert not shown["strategy"]["direct_io"]
    with qemu.running(machine="none", memory="64M", incoming=True) as waiting:
        site.run("restore", "x", "--paused", "--into", waiting.address, check=0)
        ram.assert_same(content, waiting.ram)
