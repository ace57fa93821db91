"""A program between mapsave and QEMU: descriptors end there, without a word."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, emulated, processes, qemu, wait

# As socat does: what comes in on the one side goes out on the other, but for descriptors.
_PROXY = """
import socket, sys, threading
def relay(one, other):
    while data := one.recv(65536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    client, monitor = listener.accept()[0], socket.socket(socket.AF_UNIX)
    monitor.connect(sys.argv[2])
    for pair in ((client, monitor), (monitor, client)):
        threading.Thread(target=relay, args=pair).start()
"""


@pytest.fixture(params=["qemu", "emulator"])
def monitor(request: pytest.FixtureRequest, site: cli.Site) -> Iterator[Path]:
    """The monitor of a guest."""
    if request.param == "emulator":
        with emulated.guest(site, "other") as path:
            yield path
        return
    with qemu.running() as guest:
        yield guest.qmp


@pytest.fixture
def proxy(monitor: Path, tmp_path: Path) -> Iterator[Path]:
    """A socket behind which a program leads to the monitor."""
    path = tmp_path / "proxy.qmp"
    with processes.running([sys.executable, "-c", _PROXY, str(path), str(monitor)]):
        wait.until(path.exists, what="the proxy to listen")
        yield path


def test_descriptors_that_do_not_arrive(site: cli.Site, proxy: Path) -> None:
    site.add_guest("web", proxy)
    error = site.run("check", "web", "--json", check=3).error("check.no_descriptors")
    assert "socat" in error["message"] and "-qmp unix:" in error["hint"]
    refused = site.run("save", "web", "--json", check=7).error("label.refused")
    assert "socat" in refused["message"]
    assert not list(site.images.iterdir())


def test_descriptors_that_arrive(site: cli.Site, monitor: Path) -> None:
    """The guest of a check is as before, and its monitor keeps nothing."""
    site.add_guest("web", monitor)
    for _ in range(2):
        site.run("check", "web", check=0)
    site.run("save", "web", check=0)
