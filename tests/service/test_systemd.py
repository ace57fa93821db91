"""mapsaved and systemd: what is told over a real socket, and sockets that are really passed."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import sd_notify
from mapsave.service import systemd

from tests.kit import tree, wait
from tests.service.datagrams import receiver, told


def test_every_state_is_told_as_sd_notify_has_it(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PATH": "/bin"}
    with receiver(environ["NOTIFY_SOCKET"]) as systemd_side:
        notifier = sd_notify.Notifier.from_environment(environ)
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        after = time.monotonic_ns() // 1000
        notifier.ready()
        notifier.status("3 guests, 2 jobs")
        notifier.extend(20.5)
        notifier.watchdog()
        notifier.stopping()
        reloading, *others = told(systemd_side)
    assert others == [
        *("READY=1", "STATUS=3 guests, 2 jobs", "EXTEND_TIMEOUT_USEC=20500000"),
        *("WATCHDOG=1", "STOPPING=1"),
    ]
    first, stamp = reloading.split("\n")
    assert first == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= after
    assert environ == {"PATH": "/bin"}


def test_a_socket_of_the_abstract_namespace_is_reached(tmp_path: Path) -> None:
    name = f"mapsave-test-{tmp_path}"
    with receiver(f"\0{name}") as systemd_side:
        sd_notify.Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert told(systemd_side) == ["READY=1"]


def test_a_status_cannot_set_another_variable(tmp_path: Path) -> None:
    with receiver(str(tmp_path / "notify")) as systemd_side:
        notifier = sd_notify.Notifier(str(tmp_path / "notify"))
        notifier.status("guest a\nMAINPID=1\r\x1b[0m\N{LINE SEPARATOR}b\ud800")
        notifier.status("x" * 100_000)
        first, second = told(systemd_side)
    assert first == "STATUS=guest a MAINPID=1  [0m b "
    assert len(second) < 1000


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_without_a_socket_nothing_is_told(address: str | None) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    notifier = sd_notify.Notifier.from_environment(environ)
    notifier.ready()
    notifier.status("nobody hears")
    assert environ == {}


def test_a_socket_that_vanished_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sd_notify.Notifier(str(tmp_path / "nowhere")).ready()
    assert "cannot notify systemd of READY=1" in caplog.text
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_a_full_socket_neither_blocks_nor_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with receiver(str(tmp_path / "notify")) as systemd_side:
        notifier = sd_notify.Notifier(str(tmp_path / "notify"))
        limit = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for _ in range(limit + 10):
            notifier.watchdog()  # would wait forever
        assert 0 < len(told(systemd_side)) < limit + 10
    assert "cannot notify systemd of WATCHDOG=1" in caplog.text


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", "ours", 15.0),
        ("3000000", "", 1.5),
        ("30000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("soon", "", None),
        ("-5", "", None),
    ],
)
def test_interval_of_the_watchdog(microseconds: str, pid: str, seconds: float | None) -> None:
    pid = pid.replace("ours", str(os.getpid()))  # not in the name of the test: workers differ
    environ = {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid, "HOME": "/"}
    assert sd_notify.watchdog_interval(environ) == seconds
    assert environ == {"HOME": "/"}
    assert sd_notify.watchdog_interval(environ) is None


async def test_beat_tells_until_it_is_cancelled(tmp_path: Path) -> None:
    with receiver(str(tmp_path / "notify")) as systemd_side:
        notifier = sd_notify.Notifier(str(tmp_path / "notify"))
        beating = asyncio.create_task(sd_notify.beat(notifier, 0.001))
        heard: list[str] = []
        async with asyncio.timeout(wait.LONG):
            while len(heard) < 3:
                await asyncio.sleep(0.001)
                heard += told(systemd_side)
        beating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beating
        assert set(heard) == {"WATCHDOG=1"}


async def test_beat_ends_where_nobody_waits_for_it(tmp_path: Path) -> None:
    with receiver(str(tmp_path / "notify")) as systemd_side:
        async with asyncio.timeout(wait.LONG):
            await sd_notify.beat(sd_notify.Notifier(str(tmp_path / "notify")), None)
        assert told(systemd_side) == []


# What a service does with what it was passed, and what a child of it sees then.
_CHILD = """
import json, os, subprocess, sys
from mapsave import errors
from mapsave.service import systemd
try:
    socks = systemd.listen_sockets(os.environ)
except errors.MapsaveError as error:
    left = [fd for fd in range(3, 8) if os.path.exists(f"/proc/self/fd/{fd}")]
    print(json.dumps({**error.as_dict(), "left": left}))
    sys.exit(error.exit_code)
seen = subprocess.run(
    ["sh", "-c", "ls -l /proc/self/fd; env"], close_fds=False, capture_output=True, text=True
).stdout
for sock in socks:
    sock.setblocking(True)
    connection, _ = sock.accept()
    connection.sendall(b"hello")
    connection.close()
print(json.dumps({
    "names": [sock.getsockname() for sock in socks],
    "blocking": [os.get_blocking(sock.fileno()) for sock in systemd.listen_sockets(os.environ)],
    "seen": seen,
}))
"""
# As systemd does: the descriptors are moved to 3 and on, then the pid is known, then exec.
_EXEC = """
import os, sys

count, pid, names, *given = sys.argv[1:]
high = [os.dup2(int(fd), 100 + at) for at, fd in enumerate(given)]
for fd in given:
    os.set_inheritable(int(fd), False)
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at, inheritable=True)
    os.close(fd)
environ = {**os.environ, "LISTEN_FDS": count, "LISTEN_FDNAMES": names,
           "LISTEN_PID": pid or str(os.getpid())}
os.execve(sys.executable, [sys.executable, "-c", os.environ["CHILD"]], environ)
"""


@contextlib.contextmanager
def passed_to(
    *socks: socket.socket, count: str | None = None, pid: str = "", names: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Start the child with these sockets as systemd would pass them."""
    fds = [sock.fileno() for sock in socks]
    number = str(len(fds)) if count is None else count
    with subprocess.Popen(
        [sys.executable, "-c", _EXEC, number, pid, names, *map(str, fds)],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": tree.PYTHONPATH, "CHILD": _CHILD},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def outcome(child: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = child.communicate(timeout=wait.LONG)
    found: dict[str, Any] = json.loads(output)
    return found


def listening(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if kind is socket.SOCK_STREAM:
        sock.listen()
    return sock


def test_passed_sockets_serve_and_are_hidden_from_children(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(listening(path)) for path in paths]
        with passed_to(*socks, names="api:more") as child:
            for path in paths:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(wait.LONG)
                    client.connect(str(path))
                    assert client.recv(10) == b"hello"
            found = outcome(child)
        inherited = [f"socket:[{os.fstat(sock.fileno()).st_ino}]" for sock in socks]
    assert found["names"] == [str(path) for path in paths]
    assert "pipe:[" in found["seen"]  # so it shows what is inherited
    assert not [each for each in inherited if each in found["seen"]]
    assert "LISTEN_" not in found["seen"]
    assert found["blocking"] == []  # asked a second time: they are taken


async def test_passed_sockets_do_not_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process, with descriptors from where a free one is."""
    with listening(tmp_path / "one") as sock:
        fd = os.dup(sock.fileno())
        os.set_inheritable(fd, True)
        monkeypatch.setattr(systemd, "_FIRST_DESCRIPTOR", fd)
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "HOME": "/"}
        (taken,) = systemd.listen_sockets(environ)
        with taken:
            assert taken.fileno() == fd
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
        assert environ == {"HOME": "/"}


@pytest.mark.parametrize("pid", ["1", "0", "x"])
def test_sockets_of_another_process_are_left_alone(tmp_path: Path, pid: str) -> None:
    with listening(tmp_path / "one") as sock, passed_to(sock, pid=pid) as child:
        found = outcome(child)
    assert found["names"] == []
    assert "LISTEN_" not in found["seen"]


@pytest.mark.parametrize("count", ["", "many", "-1", "0"])
def test_a_count_that_is_none_means_no_sockets(tmp_path: Path, count: str) -> None:
    with listening(tmp_path / "one") as sock, passed_to(sock, count=count) as child:
        assert outcome(child)["names"] == []


def test_a_socket_that_is_not_fit_is_refused_by_name_and_all_are_closed(tmp_path: Path) -> None:
    wrong = {
        "datagram": listening(tmp_path / "datagram", socket.SOCK_DGRAM),
        "silent": socket.socket(socket.AF_UNIX),  # does not listen
        "internet": socket.create_server(("127.0.0.1", 0)),
    }
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(listening(tmp_path / "good"))
        for sock in wrong.values():
            stack.enter_context(sock)
        for name, sock in wrong.items():
            with passed_to(good, sock, good, names=f"api:{name}:api") as child:
                found = outcome(child)
            assert child.returncode == 2
            assert found["id"] == "config.invalid"
            words = f"descriptor 4 ({name}) that systemd passed is not a listening unix"
            assert words in found["message"]
            assert "ListenStream=" in found["hint"]
            assert found["left"] == []


def test_a_descriptor_that_is_no_socket_or_not_there_is_refused(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as sock:
        with passed_to(sock, count="3") as child:
            found = outcome(child)
        assert "descriptor 4 (unnamed) that systemd passed is not a socket" in found["message"]
        assert found["left"] == []
