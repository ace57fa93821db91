"""What /proc and control groups tell of a process: what it may take, and when it is gone."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.monitor import control_groups, headroom, process

from tests.kit import limits, processes, wait

USER = 54321
GONE = (1 << 22) + 1  # beyond every pid (kernel.pid_max, proc(5))


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a process of root's that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child.pid
        child.kill()


def named(found: headroom.Headroom, kind: str, name: str) -> list[tuple[int, int]]:
    """Return most and used of the limits of a kind whose name begins so."""
    return [(one.most, one.used) for one in getattr(found, kind) if one.name.startswith(name)]


def test_descriptors_are_counted_below_the_limit() -> None:
    program = (
        "import os, resource, time\n"
        "os.dup2(0, 100)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        found = headroom.measure(child.pid)
        count = limits.descriptors(child.pid)
        child.kill()
    # The one at 100 takes no place of the 50.
    assert named(found, "descriptors", "RLIMIT_NOFILE") == [(50, count - 1)]
    assert not found.unknown or all("control group" in text for text in found.unknown)


def test_a_process_that_is_not_in_sight_or_gone() -> None:
    for pid in (None, GONE):
        found = headroom.measure(pid)
        assert found.unknown
        assert not (found.descriptors or found.threads or found.memory)


def test_a_file_of_another_users_process(sleeper: int) -> None:
    """What it has open is not for us to see; the rest is."""
    if os.geteuid() != 0:
        pytest.skip("not root, so there is nobody else to be")
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            found = headroom.measure(sleeper)
            os.write(send, json.dumps([found.unknown, len(found.descriptors)]).encode())
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as file:
        unknown, descriptors = json.loads(file.read())
    os.waitpid(child, 0)
    assert f"open files of process {sleeper}: Permission denied" in unknown
    assert descriptors == 0


def test_root_is_not_held_to_the_number_of_processes(sleeper: int) -> None:
    limits.lower(sleeper, "nproc", 1)
    held = named(headroom.measure(sleeper), "threads", "RLIMIT_NPROC")
    assert bool(held) == (os.geteuid() != 0)


@pytest.mark.root
def test_threads_of_every_group_on_the_way_up() -> None:
    with limits.control_group() as above:
        inner = above / "inner"
        inner.mkdir()
        with subprocess.Popen(["sleep", "60"]) as child:
            limits.limit_threads(inner, child.pid, 7)
            (above / "pids.max").write_text("30")
            unknown: list[str] = []
            found = control_groups.pids(child.pid, unknown)
            child.kill()
        inner.rmdir()
    assert [(each.most, each.used) for each in found[:2]] == [(8, 1), (30, 1)]
    assert found[0].file == str(inner / "pids.max")


@pytest.mark.root
def test_groups_above_a_namespace_are_unknown() -> None:
    """In a container the group of the container is the root that is seen."""
    program = (
        "from mapsave.monitor import control_groups\n"
        "unknown = []\n"
        "control_groups.pids('self', unknown)\n"
        "print(unknown)\n"
    )
    with limits.control_group() as group:
        # A namespace has its creator's group as its root, and mounts begin there.
        mount = "cgroup -o pids" if (group.parent.name == "pids") else "cgroup2"
        script = (
            f"echo $$ > {group}/cgroup.procs && exec unshare --cgroup --mount sh -c "
            f"'umount -l /sys/fs/cgroup/pids || umount -l /sys/fs/cgroup; "
            f'mount -t {mount} none {group.parent} && exec "$@"\' sh "$@"'
        )
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    assert f"limits of the control groups above {group.parent}" in done.stdout, done.stderr


def test_a_thread_is_known_by_its_id() -> None:
    assert process.has_thread(os.getpid(), threading.get_native_id())
    assert not process.has_thread(os.getpid(), GONE)
    assert not process.has_thread(GONE, GONE)


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
