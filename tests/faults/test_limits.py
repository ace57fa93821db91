"""The kernel's limits on QEMU: what it needs to the last one, and what mapsave does about it.

A bare save shows what QEMU dies of. QEMU's descriptors are counted with the two monitors of the
kit; mapsave's connection takes one more.
"""

import os
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave import errors
from mapsave.image import image as images
from mapsave.operations import limits as operation_limits
from mapsave.operations import save, save_request

from tests.kit import cli, limits, patterns, qemu, qmp, ram, raw, state

CHANNELS = 4
# Two descriptors that are handed over, QEMU's own duplicate, and one for each channel.
DESCRIPTORS = CHANNELS + 3
THREADS = CHANNELS + 1


def refused(
    site: cli.Site, guest: qemu.Qemu, *arguments: str, under: Sequence[str] = ()
) -> cli.Result:
    """Save, and be refused with the guest untouched; return the outcome."""
    before = guest.state()
    saving = ("save", guest.address, "--image", "x", *arguments, "--json")
    result = site.run(*saving, check=3, under=under)
    assert guest.alive()
    assert guest.state() == before
    assert os.listdir(site.images) == []
    return result


def saved(
    site: cli.Site, guest: qemu.Qemu, tmp_path: Path, *arguments: str, under: Sequence[str] = ()
) -> int:
    """Save, and load the image into another QEMU; return how many channels were taken."""
    contents = guest.snapshot_ram(tmp_path / "ram")
    saving = ("save", guest.address, "--image", "x", "--then", "leave", *arguments)
    site.run(*saving, check=0, under=under)
    accel = guest.argv[guest.argv.index("-accel") + 1]  # KVM and TCG differ in what the guest sees
    with qemu.running(incoming=True, accel=accel) as destination:
        site.run("restore", "x", "--into", destination.address, check=0)
        ram.assert_same(contents, destination.ram)
    with images.opened(str(site.images / "x")) as opened:
        return int(opened.metadata["strategy"]["channels"])


@pytest.fixture
def user() -> int:
    """A uid that no other process has, of other tests neither: its limit counts all of them."""
    return (1 << 20) + secrets.randbelow(1 << 29)


@pytest.mark.parametrize("missing", [0, 1])
def test_raw_one_descriptor_too_few_kills_the_guest(tmp_path: Path, missing: int) -> None:
    with qemu.running() as guest:
        most = limits.descriptors(guest.pid) + DESCRIPTORS - missing
        limits.lower(guest.pid, "nofile", most)
        if not missing:
            raw.save(guest, tmp_path / "image", channels=CHANNELS)
            return
        # It may still say "failed" before it dies.
        with pytest.raises((qmp.QmpClosed, AssertionError)):
            raw.save(guest, tmp_path / "image", channels=CHANNELS)
        assert guest.wait() == -signal.SIGSEGV


@pytest.mark.root
@pytest.mark.parametrize("missing", [0, 1])
def test_raw_one_thread_too_few_kills_the_guest(tmp_path: Path, missing: int, user: int) -> None:
    with qemu.running(user=user) as guest:
        most = limits.threads(guest.pid) + THREADS - missing
        limits.lower(guest.pid, "nproc", most, user=user)
        if not missing:
            raw.save(guest, tmp_path / "image", channels=CHANNELS)
            return
        with pytest.raises(qmp.QmpClosed):
            raw.save(guest, tmp_path / "image", channels=CHANNELS)
        assert guest.wait() == -signal.SIGABRT


@pytest.mark.parametrize(("left", "channels"), [(6, 1), (8, 3), (100, 8)])
def test_few_descriptors_take_few_channels(
    site: cli.Site, tmp_path: Path, left: int, channels: int
) -> None:
    """With six, eight channels killed the guest: the first figure is that of a real one."""
    with qemu.running(ram=patterns.sparse) as guest:
        limits.lower(guest.pid, "nofile", limits.descriptors(guest.pid) + left)
        plan = site.run("check", guest.address, "--json", check=0).json()
        assert ("RLIMIT_NOFILE" in plan["reasons"]["channels"]) == (channels < 8)
        assert saved(site, guest, tmp_path) == channels == plan["strategy"]["channels"]


@pytest.mark.parametrize("left", [1, 3, 5])
def test_too_few_descriptors_are_refused(site: cli.Site, left: int) -> None:
    """Without any, QEMU would not even accept the connection."""
    with qemu.running(paused=False) as guest:
        limits.lower(guest.pid, "nofile", limits.descriptors(guest.pid) + left)
        error = refused(site, guest).json()["error"]
        assert error["id"] == "check.limits"
        assert error["data"]["limit"] == "RLIMIT_NOFILE"
        assert "--nofile=" in error["hint"]


def test_channels_asked_for_are_not_lowered(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(ram=patterns.sparse) as guest:
        limits.lower(guest.pid, "nofile", limits.descriptors(guest.pid) + 8)
        error = refused(site, guest, "--channels", "4").json()["error"]
        assert "at most 3 channels, or set channels to auto" in error["hint"]
        assert error["data"]["needed"] > error["data"]["left"]
        assert saved(site, guest, tmp_path, "--channels", "3") == 3


@pytest.mark.root
@pytest.mark.parametrize(("left", "channels"), [(1, 0), (2, 1), (5, 4)])
def test_threads_of_the_user(
    site: cli.Site, tmp_path: Path, left: int, channels: int, user: int
) -> None:
    with qemu.running(user=user, ram=patterns.sparse) as guest:
        limits.lower(guest.pid, "nproc", limits.threads(guest.pid) + left, user=user)
        if channels:
            assert saved(site, guest, tmp_path) == channels
        else:
            error = refused(site, guest).json()["error"]
            assert error["data"]["limit"] == f"RLIMIT_NPROC of user {user}"


@pytest.mark.root
def test_threads_of_the_user_are_counted_in_all_its_processes(site: cli.Site, user: int) -> None:
    with qemu.running(user=user) as other, qemu.running(user=user) as guest:
        most = limits.threads(guest.pid) + limits.threads(other.pid) + 1
        limits.lower(guest.pid, "nproc", most, user=user)
        assert refused(site, guest).json()["error"]["data"]["left"] == 1


@pytest.mark.root
@pytest.mark.parametrize(("left", "channels"), [(1, 0), (2, 1), (5, 4)])
def test_threads_of_the_control_group(
    site: cli.Site, tmp_path: Path, left: int, channels: int
) -> None:
    """The limit of a group further up holds as well."""
    with limits.control_group() as above:
        inner = above / "inner"
        inner.mkdir()
        try:
            with qemu.running(ram=patterns.sparse) as guest:
                limits.limit_threads(inner, guest.pid, 1000)
                (above / "pids.max").write_text(str(limits.threads(guest.pid) + left))
                if channels:
                    assert saved(site, guest, tmp_path) == channels
                else:
                    error = refused(site, guest).json()["error"]
                    assert str(above / "pids.max") in error["hint"]
        finally:
            inner.rmdir()


def test_address_space(site: cli.Site) -> None:
    """Each thread takes a stack of 8 MiB; without it QEMU aborts."""
    with qemu.running(ram=patterns.sparse) as guest:
        status = Path(f"/proc/{guest.pid}/status").read_text()
        size = int(status.partition("VmSize:")[2].split()[0]) * 1024
        limits.lower(guest.pid, "as", size + (20 << 20))
        error = refused(site, guest).json()["error"]
        assert error["data"]["limit"] == "RLIMIT_AS"


@pytest.mark.parametrize("most", [512 << 10, 2 << 20, 70 << 20])
def test_length_of_files_that_qemu_may_write(site: cli.Site, most: int) -> None:
    with qemu.running(ram=patterns.sparse) as guest:
        limits.lower(guest.pid, "fsize", most)
        error = refused(site, guest).json()["error"]
        assert error["data"]["limit"] == "RLIMIT_FSIZE"
        assert error["data"]["needed"] > 64 << 20


@pytest.mark.root
def test_limits_in_another_pid_namespace(site: cli.Site, tmp_path: Path) -> None:
    """They cannot be read: mapsave says so, and takes two channels unless it is told otherwise."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with qemu.running(ram=patterns.sparse) as guest:
        result = site.run("check", guest.address, "--json", check=0, under=apart).json()
        (line,) = (line for line in result["checks"] if line["check"] == "limits")
        assert line["detail"].startswith("unknown: ")
        assert line["detail"].endswith("; 2 channels")
        assert result["strategy"]["channels"] == 2
        assert "are unknown" in result["reasons"]["channels"]
        assert saved(site, guest, tmp_path, under=apart) == 2
    with qemu.running(ram=patterns.sparse) as guest:
        assert saved(site, guest, tmp_path, "--channels", "7", "--replace", under=apart) == 7


@pytest.mark.parametrize("was_running", [True, False])
async def test_fewer_left_than_preflight_saw(
    site: cli.Site, monkeypatch: pytest.MonkeyPatch, was_running: bool
) -> None:
    """Counted again right before ``migrate``: refused then, and undone."""
    config = configuration.load(site.config, {})
    with qemu.running(paused=not was_running) as guest:
        before, recheck = guest.state(), operation_limits.recheck

        def lowered(*arguments: Any) -> None:
            limits.lower(guest.pid, "nofile", limits.descriptors(guest.pid) + 5)
            recheck(*arguments)

        monkeypatch.setattr(operation_limits, "recheck", lowered)
        known = config.guest(guest.address)
        with pytest.raises(errors.TooLittleLeft, match="since the check"):
            await save.save(known, config, save_request.request(config, known, image="x"))
        state.assert_left_as_found(before, guest.state())
        assert os.listdir(site.images) == []
        assert not list(site.state.rglob("*.journal"))


@pytest.fixture
def image(site: cli.Site, tmp_path: Path) -> ram.Snapshot:
    with qemu.running(ram=patterns.sparse) as guest:
        contents = guest.snapshot_ram(tmp_path / "ram")
        site.run("save", guest.address, "--image", "x", check=0)
        return contents


def test_destination_with_few_descriptors(site: cli.Site, image: ram.Snapshot) -> None:
    """Refused while it is of use, for QEMU cannot try twice; then with as many channels as fit."""
    with qemu.running(incoming=True) as destination:
        limits.lower(destination.pid, "nofile", limits.descriptors(destination.pid) + 5)
        before = destination.state()
        result = site.run("restore", "x", "--into", destination.address, "--json", check=3)
        assert result.error()["data"]["limit"] == "RLIMIT_NOFILE"
        assert destination.state() == before
    with qemu.running(incoming=True) as destination:
        limits.lower(destination.pid, "nofile", limits.descriptors(destination.pid) + 6)
        into = ("restore", "x", "--into", destination.address)
        asked = site.run(*into, "--channels", "2", "--json", check=3).json()
        assert "at most 1 channel" in asked["error"]["hint"]
        site.run(*into, check=0)
        ram.assert_same(image, destination.ram)


@pytest.mark.root
def test_destination_with_few_threads(site: cli.Site, tmp_path: Path, user: int) -> None:
    with qemu.running(user=user, ram=patterns.sparse) as guest:
        contents = guest.snapshot_ram(tmp_path / "ram")
        site.run("save", guest.address, "--image", "x", check=0)
    with qemu.running(incoming=True, user=user) as destination:
        limits.lower(destination.pid, "nproc", limits.threads(destination.pid) + 1, user=user)
        site.run("restore", "x", "--into", destination.address, check=3)
    with qemu.running(incoming=True, user=user) as destination:
        limits.lower(destination.pid, "nproc", limits.threads(destination.pid) + 3, user=user)
        site.run("restore", "x", "--into", destination.address, check=0)
        ram.assert_same(contents, destination.ram)


def test_destination_that_mapsave_starts(site: cli.Site, tmp_path: Path) -> None:
    """It inherits mapsave's own limits."""
    with qemu.running(ram=patterns.sparse, name="web") as guest:
        most = limits.descriptors(guest.pid) + 3  # it comes up, and that is all
        site.add_guest("web", guest.qmp, launch=["prlimit", f"--nofile={most}:{most}", *guest.argv])
        site.run("save", "web", "--image", "x", check=0)
        guest.wait()
        site.run("restore", "x", "--json", check=3).error("check.limits")
        site.add_guest("web", guest.qmp, launch=guest.argv)
        site.run("restore", "x", check=0)
        with guest.successor() as successor:
            assert successor.alive()


@pytest.mark.parametrize("most", [7, 10, 12, 14, 16, 18, 20, 22])
def test_own_descriptors(site: cli.Site, most: int) -> None:
    """Whatever is missing is found before the guest is touched."""
    with qemu.running(paused=False) as guest:
        error = refused(site, guest, under=["prlimit", f"--nofile={most}:{most}"]).json()["error"]
        assert error["id"] == "check.limits"
        assert "mapsave has" in error["message"]


def test_own_descriptors_that_suffice(site: cli.Site) -> None:
    """The soft limit is raised; and of the fewest that are allowed no more are needed."""
    with qemu.running(paused=False) as guest:
        save_it = ("save", guest.address, "--then", "resume", "--image")
        site.run(*save_it, "soft", check=0, under=["prlimit", "--nofile=5:1000"])
        site.run(*save_it, "hard", check=0, under=["prlimit", "--nofile=26:26"])


@pytest.mark.root
def test_own_threads(site: cli.Site) -> None:
    with limits.control_group() as group, qemu.running(paused=False) as guest:
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        for most in ("1", "2", "4"):
            (group / "pids.max").write_text(most)
            error = refused(site, guest, under=enter).json()["error"]
            assert error["id"] == "check.limits"
            assert "mapsave" in error["message"]


@pytest.mark.root
@pytest.mark.parametrize("left", [4, 6, 8, 9, 12])
def test_threads_shared_with_mapsave(site: cli.Site, left: int) -> None:
    """In the same control group, what mapsave itself takes is not left to QEMU."""
    with limits.control_group() as group, qemu.running(paused=False) as guest:
        limits.limit_threads(group, guest.pid, left)
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        save_it = ("save", guest.address, "--then", "resume", "--image", "x")
        result = site.run(*save_it, under=enter)
        assert result.returncode == (0 if left >= 8 else 3), result
        assert guest.status() == "running"


@pytest.mark.parametrize("most", [4096, 512 << 10])
def test_length_of_files_that_mapsave_may_write(site: cli.Site, most: int) -> None:
    with qemu.running(paused=False) as guest:
        error = refused(site, guest, under=["prlimit", f"--fsize={most}:{most}"]).json()["error"]
        assert error["data"]["limit"] == "RLIMIT_FSIZE"


def test_room_that_mapsave_may_not_reserve(site: cli.Site) -> None:
    with qemu.running(paused=False) as guest:
        limit = ["prlimit", "--fsize=40000000:40000000"]
        error = refused(site, guest, "--preallocate", "on", under=limit).json()["error"]
        assert error["data"]["limit"] == "RLIMIT_FSIZE"
        site.run("save", guest.address, "--image", "x", "--then", "resume", check=0, under=limit)
