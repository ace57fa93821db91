"""The kit's own libvirt: private, complete, and gone at the end."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import libvirt
import pytest

from tests.kit import domain, libvirtd, linux_guest, patterns, processes, qmp, ram, storage, wait
from tests.kit.libvirtd import Daemon

ODD_NAME = "a \"b\" 'c' &<é> ünï"
SYSTEM = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt")


def mounts(place: Path | None = None) -> list[str]:
    """Return what is mounted at ``place``, and outside the directories that tests are given."""
    here = tempfile.gettempdir() + "/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        point
        for point in sorted(line.split()[4] for line in lines)
        if not point.startswith(here) or (place and point.startswith(f"{place}/"))
    ]


def of_the_system() -> dict[str, int]:
    """Return the files of the system's libvirt and of control groups, with times of change."""
    found: dict[str, int] = {}
    for top in map(Path, SYSTEM):
        for path in (top, *top.rglob("*")) if top.exists() else ():
            found[str(path)] = path.lstat().st_mtime_ns
    found |= {str(path): 0 for path in Path("/sys/fs/cgroup").glob("**/*machine*")}
    return found


def test_daemon_leaves_nothing_and_touches_nothing_of_the_system() -> None:
    system, mounted = of_the_system(), mounts()
    with libvirtd.running() as daemon, domain.running(daemon) as guest:
        assert daemon.domains() == [guest.uuid]
        assert set(daemon.guests()) == {guest.pid}
        assert mounts(daemon.directory) == mounted
        assert of_the_system() == system
    assert not daemon.directory.exists()
    assert not Path(f"/proc/{daemon.pid}").exists()
    assert daemon.guests() == []
    assert mounts(daemon.directory) == mounted
    assert of_the_system() == system


def test_guests_end_with_the_daemon_on_every_path() -> None:
    with pytest.raises(ZeroDivisionError), libvirtd.running() as daemon:
        daemon.virsh("create", _file(daemon), "--paused")
        (pid,) = daemon.guests()
        handle = os.pidfd_open(pid)
        _ = 1 / 0
    processes.await_end(handle, 0)
    os.close(handle)
    assert not daemon.directory.exists()


def _file(daemon: Daemon) -> Path:
    path = daemon.directory / "guest.xml"
    path.write_text(domain.definition("left"), encoding="utf-8")
    return path


def test_domains_that_a_test_leaves_are_cleared(daemon: Daemon) -> None:
    daemon.virsh("create", _file(daemon), "--paused")
    daemon.clear()
    assert daemon.domains() == []
    assert daemon.guests() == []


def test_daemon_that_is_killed_finds_its_guests_again(own_daemon: Daemon) -> None:
    with domain.running(own_daemon, ODD_NAME, transient=False) as guest:
        pid, first = guest.pid, own_daemon.pid
        own_daemon.kill()
        assert not own_daemon.alive()
        assert not own_daemon.crashed
        assert own_daemon.virsh("list", check=False).returncode != 0
        own_daemon.restart()
        assert own_daemon.pid != first
        assert guest.pid == pid
        assert guest.state().startswith("paused")


def test_crash_is_noticed(own_daemon: Daemon) -> None:
    os.kill(own_daemon.pid, signal.SIGSEGV)
    wait.until(lambda: own_daemon.crashed, what="end of libvirtd")
    own_daemon.restart()
    assert not own_daemon.crashed


def test_libvirt_python_connects(daemon: Daemon) -> None:
    with domain.running(daemon, ODD_NAME) as guest:
        connection = libvirt.open(daemon.uri)
        found = connection.lookupByName(ODD_NAME)
        assert found.UUIDString() == guest.uuid
        connection.close()


@pytest.mark.parametrize("transient", [True, False], ids=["transient", "persistent"])
def test_state_and_ram_of_a_guest(daemon: Daemon, tmp_path: Path, transient: bool) -> None:
    with domain.running(daemon, transient=transient, ram=patterns.sparse) as guest:
        assert guest.state() == "paused (user)"
        before = guest.snapshot_ram(tmp_path / "before")
        size = 64 * patterns.MIB
        wanted = patterns.sparse(size - patterns.MIB)
        assert guest.ram.read("pc.ram", patterns.MIB) == wanted
        guest.virsh("save", tmp_path / "image", "--image-format", "sparse")
        assert guest.state() == (domain.GONE if transient else "shut off (saved)")
        daemon.virsh("restore", tmp_path / "image", "--paused")
        ram.assert_same(before, guest.ram)
        guest.virsh("resume")
        assert guest.state() == "running (unpaused)"
        guest.kill()
        guest.wait_state(*([domain.GONE] if transient else ["shut off (crashed)"]))
    assert daemon.domains() == []


def test_ram_from_a_file(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "ram, of the guest"
    patterns.write(path, 16 * patterns.MIB)
    with domain.running(daemon, memory=16 * patterns.MIB, ram_file=path) as guest:
        assert guest.ram.read("m") == path.read_bytes()


def test_running_guest_and_errors_of_its_monitor(daemon: Daemon) -> None:
    with domain.running(daemon, paused=False) as guest:
        assert guest.state().startswith("running")
        assert guest.status().run_state == "running"
        with pytest.raises(qmp.QmpError, match="No file descriptor supplied"):
            guest.execute("add-fd", fdset_id=9, opaque="test")
        with pytest.raises(AssertionError, match="virsh suspend"):
            guest.virsh("suspend", "--nosuch")


def test_file_system_that_the_daemon_does_not_see(daemon: Daemon, tmp_path: Path) -> None:
    with storage.tmpfs(8 * patterns.MIB, tmp_path) as place, domain.running(daemon) as guest:
        if "shared:" not in " ".join(line for line in mounts() if f" {place} " in line):
            with pytest.raises(AssertionError, match="does not see"):
                guest.virsh("save", place / "image")
        with libvirtd.running() as later, domain.running(later) as other:
            other.virsh("save", place / "image")
            assert (place / "image").exists()


def test_session_of_an_ordinary_user(session_daemon: Daemon, tmp_path: Path) -> None:
    with domain.running(session_daemon, ODD_NAME, ram=patterns.sparse) as guest:
        assert f"Uid:\t{libvirtd.NOBODY}" in Path(f"/proc/{guest.pid}/status").read_text()
        # For its owner it is qemu:///session.
        listing = subprocess.run(
            ["virsh", "--connect", "qemu:///session", "list", "--name"],
            env={**processes.environment(session_daemon.env), "LC_ALL": "C.UTF-8"},
            user=session_daemon.user,
            group=session_daemon.user,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=True,
            timeout=wait.LONG,
        )
        assert listing.stdout.strip() == ODD_NAME
        before = guest.snapshot_ram(tmp_path / "before")
        image = session_daemon.directory / "image"
        guest.virsh("save", image, "--image-format", "sparse")
        session_daemon.virsh("restore", image, "--paused")
        ram.assert_same(before, guest.ram)
    session_daemon.stop()
    assert session_daemon.guests() == []


EMBEDDED = """
import sys, threading, libvirt
libvirt.virEventRegisterDefaultImpl()
def turn():
    while True: libvirt.virEventRunDefaultImpl()
threading.Thread(target=turn, daemon=True).start()
connection = libvirt.open(sys.argv[1])
if len(sys.argv) > 2:
    connection.createXML(sys.argv[2], libvirt.VIR_DOMAIN_START_PAUSED)
print([each.name() for each in connection.listAllDomains()])
"""


def test_embedded_driver() -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", EMBEDDED, uri, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=wait.LONG,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with libvirtd.embedded() as uri:
        assert run(domain.definition("inside")) == "['inside']"
        assert run() == "['inside']"
    assert not Path(uri.partition("root=")[2]).exists()


def test_linux_guest_goes_on_after_a_save_and_restore(daemon: Daemon, tmp_path: Path) -> None:
    with domain.linux(daemon, log=tmp_path / "serial, é.log") as guest:
        guest.serial.wait_ticks(2)
        guest.domain.virsh("save", tmp_path / "image", "--image-format", "sparse")
        before = guest.serial.ticks()
        daemon.virsh("restore", tmp_path / "image")
        linux_guest.assert_same_memory(before, guest.serial.wait_ticks(2))
