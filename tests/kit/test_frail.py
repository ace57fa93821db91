"""A test that cancels a save is done once more where QEMU died by SIGSEGV, and only there."""

import subprocess
import sys
from pathlib import Path

from tests.kit import tree

_TESTS = """
import signal, subprocess
import pytest
from tests.kit import frail

pytestmark = pytest.mark.cancels
found = []

def dies(number):
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    frail.note(subprocess.run(["python3", "-c", code]).returncode)

def test_dies_once(tmp_path):
    found.append(tmp_path)
    (tmp_path / "made").touch(exist_ok=False)
    if len(found) == 1:
        dies(signal.SIGSEGV)
        raise AssertionError("the guest is gone")

def test_dies_each_time():
    dies(signal.SIGSEGV)
    raise AssertionError("the guest is gone")

def test_dies_otherwise():
    found.append(1)
    dies(signal.SIGABRT)
    raise AssertionError("the guest is gone")

def test_fails_otherwise():
    assert len(found) == 3
    raise AssertionError("another fault")
"""


def test_once_more(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": tree.PYTHONPATH, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    outcomes = [line.split(" - ")[0] for line in lines if line.startswith(("PASSED", "FAILED"))]
    assert outcomes == [
        "PASSED test_it.py::test_dies_once",
        "FAILED test_it.py::test_dies_each_time",
        "FAILED test_it.py::test_dies_otherwise",
        "FAILED test_it.py::test_fails_otherwise",
    ], done.stdout
    assert "another fault" in done.stdout
    again = [line.partition(":: ")[0] for line in lines if "done once more" in line]
    assert [line.split(": done")[0] for line in again] == [
        "test_it.py::test_dies_once",
        "test_it.py::test_dies_each_time",
    ]
