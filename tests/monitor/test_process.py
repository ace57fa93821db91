"""When a process counts as gone."""

import os
import subprocess
import sys
from pathlib import Path

from mapsave.monitor import process

from tests.kit import processes, wait

# Its first thread ends by the system call exit (60 on x86-64, 93 on arm64), the second one waits
# for its input to be closed: as QEMU when it has quit and still gives back its memory.
HEADLESS = """
import ctypes, os, platform, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
number = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(number, 0)
"""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_process_lives_until_its_last_thread_ends() -> None:
    with processes.running([sys.executable, "-c", HEADLESS], stdin=subprocess.PIPE) as headless:
        wait.until(lambda: state(headless.pid) == "Z", what="end of the first thread")
        started = process.start_time(headless.pid)
        assert started is not None
        assert process.alive(headless.pid, started)
        assert headless.stdin
        headless.stdin.close()
        wait.until(lambda: not process.alive(headless.pid, started), what="end of the second")


def test_process_that_nobody_reaped_is_gone() -> None:
    with processes.running([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert state(ended.pid) == "Z"
        assert process.start_time(ended.pid) is None


def test_pid_of_another_process_is_not_alive() -> None:
    started = process.start_time(os.getpid())
    assert started is not None
    assert process.alive(os.getpid(), started)
    assert not process.alive(os.getpid(), started - 1)
