"""qemu:///system, qemu:///session of an ordinary user, and the embedded driver."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns, qemu, qmp, ram, wait
from tests.kit.libvirtd import Daemon

NAME = "a 'b' <é>"


def run(
    command: Sequence[str], site: cli.Site, *words: str | Path, env: Mapping[str, str] | None = None
) -> cli.Result:
    """Run ``mapsave``, whose beginning is ``command``, with the site's configuration."""
    return site.run(*words, "--json", command=command, env=env, check=0)


def test_address_without_a_uri_is_one_of_the_system(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    # Where the daemon is, qemu:///system is the daemon.
    inside = ["nsenter", f"--mount=/proc/{daemon.pid}/ns/mnt", *cli.COMMAND]
    with domain.running(daemon, NAME, ram=patterns.sparse, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        path = site.images / "image"
        run(inside, site, "save", f"libvirt:{NAME}", "-o", path)
        guest.wait_state("shut off (shutdown)")
        restored = run(inside, site, "restore", path).json()
        assert restored["monitor"] == f"libvirt:{NAME}"
        ram.assert_same(before, guest.ram)
        for name in (NAME, guest.uuid):  # as guests are there that have names of their own
            error = site.run("check", name, "--json", command=inside, check=2).error()
            assert error["id"] == "guest.unknown"
            assert error["hint"] == f"did you mean {f'libvirt:{name}'!r}?"
        saved = run(inside, site, "save", f"libvirt:{guest.uuid}", "--then", "leave").json()
        assert Path(saved["image"]).name.startswith(f"{guest.uuid}-")


def as_user(user: int) -> list[str]:
    """Return what begins the command of an ordinary user.

    Not every Python may be read by other users: the one right beyond theirs is to read files.
    """
    rights = "dac_read_search"
    return [
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
        *(f"--inh-caps=-all,+{rights}", f"--ambient-caps=-all,+{rights}"),
    ]


@pytest.fixture
def users_site(session_daemon: Daemon) -> Iterator[cli.Site]:
    """A set-up that belongs to the owner of the session's daemon."""
    site = cli.Site(session_daemon.directory / "site")
    for path in (site.directory, *site.directory.rglob("*")):
        os.chown(path, session_daemon.user, session_daemon.user)
    yield site


def test_ordinary_user_saves_the_guests_of_the_own_session(
    session_daemon: Daemon, users_site: cli.Site, tmp_path: Path
) -> None:
    command = [*as_user(session_daemon.user), *cli.COMMAND]
    address, path = f"libvirt+qemu:///session#{NAME}", users_site.images / "image"
    with domain.running(session_daemon, NAME, ram=patterns.sparse, transient=False) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        for through in ([], ["--through-libvirt"], ["--instant", "on"]):
            saving = ("save", address, "-o", path, "--replace")
            run(command, users_site, *saving, env=session_daemon.env)
            guest.wait_state("shut off (shutdown)")
            assert path.stat().st_uid == session_daemon.user
            restoring: list[str | Path] = ["restore", path, "--guest", address, *through]
            restored = run(command, users_site, *restoring, env=session_daemon.env).json()
            assert restored["monitor"] == address
            main = "Pc.ram" if restored["instant"] else "pc.ram"
            ram.assert_same(before.called("pc.ram", main), guest.ram)


# Opens the embedded driver, and starts the domain.
_START = """
import sys, threading, libvirt
libvirt.virEventRegisterDefaultImpl()
def turn():
    while True: libvirt.virEventRunDefaultImpl()
threading.Thread(target=turn, daemon=True).start()
libvirt.open(sys.argv[1]).createXML(sys.argv[2], libvirt.VIR_DOMAIN_START_PAUSED)
"""


def test_embedded_driver(embedded_uri: str, site: cli.Site, tmp_path: Path) -> None:
    # Only who opened the driver reaches libvirt's monitor, so the guest has one for us.
    with qemu.directory_for() as place:
        socket = place / "qmp"
        monitor = ["-qmp", f"unix:{socket},server=on,wait=off"]
        xml = domain.definition(NAME, arguments=monitor)
        subprocess.run(
            [sys.executable, "-c", _START, embedded_uri, xml], check=True, timeout=wait.LONG
        )
        with qmp.connect(socket) as client:
            live, pid = ram.LiveRam(client.peer_pid(), client), client.peer_pid()
            qemu.fill_ram(live, patterns.sparse)
            before = ram.snapshot(live, tmp_path / "before")
        address, path = f"libvirt+{embedded_uri}#{NAME}", site.images / "image"
        site.run("save", address, "-o", path, check=0)
        wait.until(lambda: not Path(f"/proc/{pid}").exists(), what="end of QEMU")
        site.run("restore", path, "--guest", address, check=0)
        with qmp.connect(socket) as client:
            ram.assert_same(before, ram.LiveRam(client.peer_pid(), client))
            assert client.execute("query-fdsets") == []
        # Another mapsave finds the guest again.
        saved = site.run("save", address, "--then", "leave", "--json", check=0).json()
        site.run("verify", saved["image"], check=0)


@pytest.mark.parametrize(
    "uri", ["qemu+tcp://localhost/system", "qemu+ssh://host/system", "qemu://host/system"]
)
def test_remote_ones_are_refused_with_the_reason(site: cli.Site, uri: str) -> None:
    """libvirt would take the connection, and QEMU miss the descriptors once it is to save."""
    result = site.run("check", f"libvirt+{uri}#guest", "--json", check=3)
    error = result.json()["error"]
    assert error["id"] == "check.no_descriptors"
    assert "only through a socket of the same host" in error["message"]


def test_an_image_goes_back_to_the_libvirt_that_it_is_of(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with domain.running(daemon, ram=patterns.sparse) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", guest.address, "-o", "image", check=0)
        restored = site.run("restore", "image", "--json", check=0).json()
        assert restored["monitor"] == guest.address
        ram.assert_same(before, guest.ram)
