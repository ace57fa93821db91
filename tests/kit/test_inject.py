"""The library that makes calls fail does what its rules say, and nothing else."""

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import inject, processes, tree

_PROGRAM = """
import ctypes, os, sys
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]
libc = ctypes.CDLL(None, use_errno=True)
libc.pwritev.restype = ctypes.c_ssize_t
libc.pwritev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
parts = (Part * 2)((b"y" * 60, 60), (b"z" * 40, 40))
print([os.pwrite(fd, b"x" * 100, 0), libc.pwritev(fd, parts, 2, 4096), ctypes.get_errno()])
"""
# It calls pwritev2.
_PYTHONS_PWRITEV = """
import os, sys
print(os.pwritev(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), [b"y" * 60, b"z" * 40], 4096))
"""

# Calls that take no offset, as Python and mapsave make them.
_CALLS = """
import errno, os, socket, sys
from mapsave.image import syscalls
def told(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
directory, name = os.path.split(sys.argv[1])
at = os.open(directory, os.O_RDONLY)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
here, there = socket.socketpair()
print(
    told(os.fdatasync, fd),
    told(os.ftruncate, fd, 100),
    told(syscalls.preallocate, fd, 0, 4096),
    told(syscalls.open_beneath, at, name, os.O_RDONLY),
    told(os.open, sys.argv[1], os.O_RDONLY),
    told(syscalls.rename, at, name, "new", replace=False),
    told(os.unlink, "new", dir_fd=at),
    told(here.send, b"x"),
    told(there.recv, 1),
)
"""


def _run(path: Path, *rules: inject.Rule) -> subprocess.CompletedProcess[str]:
    return _python(_PROGRAM, path, *rules)


def _python(program: str, path: Path, *rules: inject.Rule) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, path],
        env=processes.environment({**inject.environment(*rules), "PYTHONPATH": tree.PYTHONPATH}),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("rule", "printed"),
    [
        (inject.Rule("pwrite", "short", 7), "[7, 100, 0]"),
        (inject.Rule("pwritev", "short", 70), "[100, 70, 0]"),
        (inject.Rule("pwrite", "short", 7, skip=1), "[100, 100, 0]"),
        (inject.Rule("pwritev", "short", 70, first=8192), "[100, 100, 0]"),
        (inject.Rule("pwritev", "short", 70, path=".other"), "[100, 100, 0]"),
    ],
)
def test_short(tmp_path: Path, rule: inject.Rule, printed: str) -> None:
    path = tmp_path / "one.mapsave"
    assert _run(path, rule).stdout.strip() == printed


def test_pwritev_of_python(tmp_path: Path) -> None:
    path = tmp_path / "one.mapsave"
    rule = inject.Rule("pwritev", "short", 70)
    assert _python(_PYTHONS_PWRITEV, path, rule).stdout.strip() == "70"


def test_errno(tmp_path: Path) -> None:
    path = tmp_path / "one.mapsave"
    failed = _run(path, inject.Rule("pwritev", "errno", errno.EIO))
    assert failed.stdout.strip() == f"[100, -1, {errno.EIO}]"
    assert path.read_bytes() == b"x" * 100


def test_a_socket_is_known_by_what_it_is_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "one.qmp"
    program = (
        "import socket, sys\n"
        "a, b = socket.socketpair()\n"
        "a.send(b'x'); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'x')"
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        rule = inject.Rule("send", "errno", errno.EPIPE, path="one.qmp")
        stderr = _python(program, path, rule).stderr
    assert "line 3" in stderr and "BrokenPipeError" in stderr


def test_what_was_hit_is_reported(tmp_path: Path) -> None:
    path, met = tmp_path / "one.mapsave", tmp_path / "met"
    rules = (inject.Rule("pwritev", "short", 7), inject.Rule("readv", "short", 7))
    env = processes.environment(inject.environment(*rules, met=met))
    subprocess.run([sys.executable, "-c", _PROGRAM, path], env=env, check=True)
    assert met.read_text() == "pwritev short\n"


def test_kill(tmp_path: Path) -> None:
    assert _run(tmp_path / "one.mapsave", inject.Rule("pwrite", "kill", 9)).returncode == -9


@pytest.mark.parametrize(
    ("rules", "printed"),
    [
        ([], "ok ok ok ok ok ok ok ok ok"),
        ([inject.Rule("fdatasync", "errno", errno.EIO)], "EIO ok ok ok ok ok ok ok ok"),
        ([inject.Rule("ftruncate", "errno", errno.EIO)], "ok EIO ok ok ok ok ok ok ok"),
        ([inject.Rule("fallocate", "errno", errno.ENOSPC)], "ok ok ENOSPC ok ok ok ok ok ok"),
        (
            [inject.Rule("open", "errno", errno.EIO, "one.mapsave", skip=1)],
            "ok ok ok EIO ok ok ok ok ok",
        ),
        (
            [inject.Rule("open", "errno", errno.EIO, "one.mapsave", skip=2)],
            "ok ok ok ok EIO ok ok ok ok",
        ),
        ([inject.Rule("rename", "errno", errno.EROFS)], "ok ok ok ok ok EROFS ENOENT ok ok"),
        (
            [inject.Rule("unlink", "errno", errno.EROFS, path="new")],
            "ok ok ok ok ok ok EROFS ok ok",
        ),
        (
            [
                inject.Rule("send", "errno", errno.EPIPE, path="socket:"),
                inject.Rule("recv", "errno", errno.ECONNRESET, path="socket:"),
            ],
            "ok ok ok ok ok ok ok EPIPE ECONNRESET",
        ),
    ],
)
def test_calls_without_offset(tmp_path: Path, rules: list[inject.Rule], printed: str) -> None:
    assert _python(_CALLS, tmp_path / "one.mapsave", *rules).stdout.strip() == printed
