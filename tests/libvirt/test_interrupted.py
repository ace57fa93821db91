"""libvirtd killed at every step of a save, signals, full disks: the guest runs, or is an image."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import struck
from tests.kit import cli, domain, patterns, processes, ram, storage, tree, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import (
    IMAGE,
    MIB,
    NAME,
    NOT_YET,
    RUNS,
    WHOLE,
    as_before,
    await_writing,
    nothing_left,
    slow,
    small,
    writing,
)

# Seconds until a libvirtd that was killed is started again.
_AWAY = 0.5
# As ``struck.stopped``, with a shorter patience for a libvirtd that is away.
_IMPATIENT = """
import sys
from mapsave.cli import main
from mapsave.monitor import libvirt_link
from tests.faults import killer
libvirt_link.RECONNECT_TIMEOUT = 0.5
killer.arm("after", sys.argv[1], "STOP")
main.main(sys.argv[2:])
"""


# libvirtd killed, and back soon.


def _killed_for_a_while(daemon: Daemon, process: subprocess.Popen[str]) -> cli.Result:
    daemon.kill()
    process.send_signal(signal.SIGCONT)
    time.sleep(_AWAY)
    assert process.poll() is None or process.returncode in (0, 4)
    daemon.start()
    return cli.ended(process)


@pytest.mark.cancels
@pytest.mark.parametrize(
    ("step", "then"),
    [*zip((*NOT_YET, "writing", *WHOLE), ("quit", "resume") * 4, strict=True), ("commit", "quit")],
)
def test_libvirtd_killed_and_restarted(
    own_daemon: Daemon, site: cli.Site, step: str, then: str
) -> None:
    """The save goes on when it is back, or is undone; nothing is left over either way."""
    with (slow if step == "writing" else small)(own_daemon, paused=False) as guest:
        before, pid = guest.status(), guest.pid
        save = ("save", guest.address, "--image", IMAGE, "--then", then, "--json")
        at = writing(site, *save) if step == "writing" else struck.stopped(site, step, *save)
        with at as process:
            result = _killed_for_a_while(own_daemon, process)
        assert not own_daemon.crashed
        if step in WHOLE:
            assert result.returncode == 0, result
        if result.returncode:
            assert result.returncode == 4, result
            assert "libvirtd" in result.error()["message"]
            nothing_left(site)
            assert guest.pid == pid
            as_before(guest, before)
            return
        nothing_left(site, IMAGE)
        if then == "resume":
            as_before(guest, before)
            guest.remove()
        guest.wait_state(domain.GONE)
        own_daemon.virsh("restore", site.images / IMAGE)
        assert guest.state().startswith("running")


# libvirtd killed, and gone.


@contextmanager
def _impatient(
    site: cli.Site, step: str, *arguments: str | os.PathLike[str]
) -> Iterator[subprocess.Popen[str]]:
    with processes.running(
        [sys.executable, "-c", _IMPATIENT, step, "--config", site.config, *arguments],
        env={"PYTHONPATH": tree.PYTHONPATH, "HOME": str(site.directory / "home")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait.until(lambda: struck.stands_still(process), what=f"mapsave to stop at {step}")
        yield process


@pytest.mark.cancels
@pytest.mark.parametrize(
    ("step", "slowly", "outcome"),
    [
        ("label", False, "save rolled back"),
        ("pause", False, "save rolled back"),
        ("migrate", True, "image committed"),
        ("complete", False, "image committed"),
        ("resume", False, "image committed"),
    ],
)
def test_libvirtd_killed_for_good(
    own_daemon: Daemon, site: cli.Site, step: str, slowly: bool, outcome: str
) -> None:
    """What cannot be finished or undone without it is left to recover, once it is back."""
    with (slow if slowly else small)(own_daemon, paused=False) as guest:
        before = guest.status()
        save = ("save", guest.address, "--image", IMAGE, "--then", "resume", "--json")
        with _impatient(site, step, *save) as process:
            if slowly:
                process.send_signal(signal.SIGCONT)
                await_writing(site)
            own_daemon.kill()
            result = cli.ended(process, check=4)
        error = result.error()
        assert "libvirtd was lost" in error["message"]
        assert "mapsave recover" in error["hint"]
        assert len(struck.journals(site)) == 1
        again = site.run("recover", "--json", check=3).json()["operations"]
        assert [line["error"]["id"] for line in again] == ["check.unreachable"]
        own_daemon.start()
        done = site.run("recover", "--json", check=0).json()["operations"]
        assert [line["outcome"].partition(":")[0] for line in done] == [outcome]
        as_before(guest, before)
        nothing_left(site, *([IMAGE] if "committed" in outcome else []))
        assert not own_daemon.crashed


# libvirtd killed in a restore.


@contextmanager
def _saved(daemon: Daemon, site: cli.Site) -> Iterator[Domain]:
    with small(daemon, paused=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        guest.wait_state(domain.GONE)
        yield guest


def _marked(site: cli.Site) -> str:
    (found,) = site.run("list", "--json", check=0).json()["images"]
    return str(found["state"])


@pytest.mark.parametrize("step", ["load", "mark", "run"])
def test_libvirtd_killed_and_restarted_in_a_restore(
    own_daemon: Daemon, site: cli.Site, step: str
) -> None:
    with _saved(own_daemon, site) as guest:
        with struck.stopped(site, step, "restore", IMAGE, "--guest", guest.address) as process:
            result = _killed_for_a_while(own_daemon, process)
        assert result.returncode == 0, result
        assert guest.state() == RUNS
        assert _marked(site) == "restored"
        nothing_left(site, IMAGE)


@pytest.mark.parametrize(
    ("step", "outcome"),
    [("load", "destination stopped, image as before"), ("run", "guest restored")],
)
def test_libvirtd_killed_for_good_in_a_restore(
    own_daemon: Daemon, site: cli.Site, step: str, outcome: str
) -> None:
    with _saved(own_daemon, site) as guest:
        with _impatient(site, step, "restore", IMAGE, "--guest", guest.address) as process:
            own_daemon.kill()
            result = cli.ended(process)
        own_daemon.start()
        assert result.returncode == 5, result
        done = site.run("recover", "--json", check=0).json()["operations"]
        assert [line["outcome"] for line in done] == [outcome]
        restored = outcome == "guest restored"
        assert guest.state() == (RUNS if restored else domain.GONE)
        assert _marked(site) == ("restored" if restored else "saved")


@pytest.mark.cancels
@pytest.mark.parametrize(
    ("step", "signals"),
    [
        ("label", "TERM"),
        ("hand-over", "INT"),
        ("pause", "TERM"),
        ("migrate", "INT+INT"),
        ("complete", "INT"),
    ],
)
def test_signal_at_a_step(daemon: Daemon, site: cli.Site, step: str, signals: str) -> None:
    with small(daemon, paused=False) as guest:
        before = guest.status()
        result = struck.run(site, "after", step, signals, "save", guest.address, "--image", IMAGE)
        assert result.returncode == 9, result
        as_before(guest, before)
        nothing_left(site)


@pytest.mark.cancels
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_qemu_writes(daemon: Daemon, site: cli.Site, number: signal.Signals) -> None:
    with slow(daemon, paused=False) as guest:
        before = guest.status()
        with writing(site, "save", guest.address, "--image", IMAGE) as process:
            process.send_signal(number)
            cli.ended(process, check=9)
        as_before(guest, before)
        nothing_left(site)


@pytest.mark.parametrize("step", ["launch", "load"])
def test_signal_in_a_restore(daemon: Daemon, site: cli.Site, step: str) -> None:
    """The domain goes, and the image is as before."""
    with small(daemon, paused=False, transient=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        restore = ("restore", IMAGE, "--guest", guest.address)
        assert struck.run(site, "after", step, "TERM", *restore).returncode == 9
        if struck.journals(site):  # a busy host may not undo it within the five seconds
            site.run("recover", check=0)
        guest.wait_state("shut off")
        nothing_left(site, IMAGE)
        site.run(*restore, check=0)
        assert guest.state().startswith("running")


@pytest.mark.root
def test_disk_full_half_way(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """The guest's RAM is a private mapping of a file that is not resident: no one can know.

    With one channel: of several QEMU 10.0 dies now and then where one fails (docs/hazards.md).
    """
    content = patterns.write(tmp_path / "ram-file", 64 * MIB, patterns.dense)
    with (
        storage.loop_filesystem("ext4", 64 * MIB, tmp_path) as place,
        # KVM counts a clock up in the guest's RAM when it is loaded.
        domain.running(daemon, NAME, ram_file=content, paused=False) as guest,
    ):
        before = guest.status()
        save = ("save", guest.address, "--then", "leave", "--json", "--image")
        with storage.filled(place, leave=30 * MIB):
            result = site.run(*save, place / IMAGE, "--channels", "1", check=4)
            assert "No space left on device" in result.error()["message"]
            as_before(guest, before)
            assert not list(place.glob(f"{IMAGE}*")), "the partial image was left"
        site.run(*save, IMAGE, check=0)
        saved = guest.snapshot_ram(tmp_path / "saved")
        guest.remove()
        os.truncate(content, 0)  # a destination's RAM must be zero
        os.truncate(content, 64 * MIB)
        site.run("restore", IMAGE, "--guest", guest.address, "--paused", check=0)
        ram.assert_same(saved, guest.ram)


@pytest.mark.root
def test_read_only_directory(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with (
        small(daemon, paused=False) as guest,
        storage.tmpfs(200 * MIB, tmp_path) as place,
        storage.read_only(place),
    ):
        before = guest.status()
        site.run("save", guest.address, "--json", "--image", place / IMAGE, check=3).error(
            "check.directory"
        )
        as_before(guest, before)
