"""Modes in which QEMU aborts, hangs or fails in a save or a load: found out beforehand."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.kit import qemu, qmp, raw

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit import cli

pytestmark = pytest.mark.qemu


def recording(directory: Path, mode: str = "record") -> list[str]:
    """Return the arguments of a QEMU that records its execution, or plays it again."""
    return ["-icount", f"shift=auto,rr={mode},rrfile={directory}/record"]


def test_raw_recording_makes_qemu_abort(tmp_path: Path) -> None:
    with qemu.running(*recording(tmp_path), accel="tcg", paused=False) as guest:
        with pytest.raises(qmp.QmpClosed):
            raw.save(guest, tmp_path / "image")
        assert guest.wait() == -signal.SIGABRT
        assert "replay_mutex_locked" in guest.stderr()


@pytest.mark.parametrize("paused", [True, False])
def test_recording_is_refused(site: cli.Site, tmp_path: Path, paused: bool) -> None:
    with qemu.running(*recording(tmp_path), accel="tcg", paused=paused) as guest:
        before = guest.state()
        site.run("check", guest.address, check=3)
        result = site.run("save", guest.address, "--image", "x", "--json", check=3)
        assert result.json()["error"]["id"] == "check.mode"
        assert guest.state() == before
        assert os.listdir(site.images) == []


@pytest.mark.parametrize(
    ("saved", "destination"),
    [
        ("shift=auto", None),
        ("shift=auto", "shift=7"),
        ("7", "7,sleep=off"),
        ("shift=7,sleep=on", "sleep=off,shift=7"),
        ("shift=7", None),
    ],
)
def test_clocks_that_the_destination_lacks(
    site: cli.Site, saved: str, destination: str | None
) -> None:
    """QEMU aborts over a timer that is not there."""
    icount = save_counting(site, saved)
    other = [] if destination is None else ["-icount", destination]
    with qemu.running(*other, accel="tcg", incoming=True) as guest:
        restoring = ("restore", "x", "--into", guest.address, "--json")
        error = site.run(*restoring, check=3).json()["error"]
        assert error["id"] == "check.destination"
        assert "-icount" in error["hint"]
        with pytest.raises((qmp.QmpClosed, AssertionError)):
            raw.restore(guest, site.images / "x")
        assert guest.wait() == -signal.SIGABRT
    with qemu.running(*icount, accel="tcg", incoming=True) as guest:
        site.run("restore", "x", "--into", guest.address, check=0)
        assert guest.alive()


@pytest.mark.parametrize(
    ("saved", "destination"), [("shift=7", "shift=auto"), ("shift=7,sleep=off", None)]
)
def test_clocks_that_fit(site: cli.Site, saved: str, destination: str | None) -> None:
    save_counting(site, saved)
    other = [] if destination is None else ["-icount", destination]
    with qemu.running(*other, accel="tcg", incoming=True) as guest:
        site.run("restore", "x", "--into", guest.address, check=0)


def save_counting(site: cli.Site, icount: str) -> list[str]:
    """Save a guest that counts its instructions; return its arguments."""
    arguments = ["-icount", icount]
    with qemu.running(*arguments, accel="tcg", paused=False) as guest:
        site.run("save", guest.address, "--image", "x", check=0)
    return arguments


def test_qemu_that_has_made_no_machine_yet(site: cli.Site) -> None:
    with qemu.running("-preconfig", paused=False) as guest:
        for command in (("check", guest.address), ("save", guest.address)):
            error = site.run(*command, "--json", check=3).json()["error"]
            assert error["id"] == "check.run_state"
            assert "x-exit-preconfig" in error["hint"]
