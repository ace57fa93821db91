"""The library that makes calls fail does what its rules say, and nothing else."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kit import inject, processes

if TYPE_CHECKING:
    from pathlib import Path

# Python's own os.pwritev calls pwritev2.
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


def _run(path: Path, *rules: inject.Rule) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, path],
        env=processes.environment(inject.environment(*rules)),
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


def test_errno(tmp_path: Path) -> None:
    path = tmp_path / "one.mapsave"
    failed = _run(path, inject.Rule("pwritev", "errno", errno.EIO))
    assert failed.stdout.strip() == f"[100, -1, {errno.EIO}]"
    assert path.read_bytes() == b"x" * 100


def test_kill(tmp_path: Path) -> None:
    assert _run(tmp_path / "one.mapsave", inject.Rule("pwrite", "kill", 9)).returncode == -9
