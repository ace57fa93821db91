"""How much of what the kernel limits a process may still take: open files, threads, address space.

QEMU asks for nothing beforehand: without a descriptor for a channel it dies by SIGSEGV in a save,
without a thread by abort(3) (10.0, seen).

Sources: proc(5), getrlimit(2), and the kernel's documentation of the control groups
(``admin-guide/cgroup-v1/pids.rst``, ``admin-guide/cgroup-v2.rst``).
"""

import dataclasses
import os
import re
from pathlib import Path

from mapsave.monitor import control_groups, process
from mapsave.monitor.control_groups import Limit

_LIMIT_LINE = re.compile(r"^(Max [a-z ]+?)\s{2,}(\S+)", re.MULTILINE)
# Of a thread of a process without a limit on stacks (pthread_create(3), x86-64).
_STACK = 2 << 20
# Who has one of these is not held to RLIMIT_NPROC: CAP_SYS_ADMIN, CAP_SYS_RESOURCE.
_EXEMPT = 1 << 21 | 1 << 24
_WHOLE_UID_MAP = [b"0", b"0", b"4294967295"]
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # the kernel's include/linux/proc_ns.h


@dataclasses.dataclass(frozen=True)
class Headroom:
    """What limits a process, and how much is left; ``unknown`` says what could not be read.

    ``memory`` and ``stack`` (of each new thread) are in bytes, as is ``file_size``, the length up
    to which the process may write files; None where that is not limited.
    """

    descriptors: tuple[Limit, ...] = ()
    threads: tuple[Limit, ...] = ()
    memory: tuple[Limit, ...] = ()
    file_size: int | None = None
    stack: int = _STACK
    unknown: tuple[str, ...] = ()


def measure(pid: int | None) -> Headroom:
    """Return what a process may still take; nothing is raised for what cannot be read."""
    if pid is None:
        return Headroom(unknown=("QEMU's process cannot be seen",))
    try:
        limits = _limits(pid)
        status = process.status(pid)
    except OSError as error:
        return Headroom(unknown=(f"limits of process {pid}: {error.strerror}",))
    unknown: list[str] = []
    return Headroom(
        descriptors=_descriptors(pid, limits, unknown),
        threads=(
            *_user(pid, limits, status, unknown),
            *control_groups.pids(pid, unknown),
            *_system_wide(),
        ),
        memory=_memory(limits, status),
        file_size=limits["Max file size"],
        stack=limits["Max stack size"] or _STACK,
        unknown=tuple(unknown),
    )


def _limits(pid: int) -> dict[str, int | None]:
    """Return the soft limits by their names in /proc/PID/limits; None is unlimited."""
    with open(f"/proc/{pid}/limits", encoding="utf-8") as file:
        values = dict(_LIMIT_LINE.findall(file.read()))
    return {name: None if value == "unlimited" else int(value) for name, value in values.items()}


def _descriptors(pid: int, limits: dict[str, int | None], unknown: list[str]) -> tuple[Limit, ...]:
    most = limits["Max open files"]
    if most is None:
        return ()
    try:
        # The limit is on the number itself, and those beyond it (it was lowered) take no place.
        used = sum(int(number) < most for number in os.listdir(f"/proc/{pid}/fd"))
    except OSError as error:
        unknown.append(f"open files of process {pid}: {error.strerror}")
        return ()
    return (Limit("RLIMIT_NOFILE", most, used),)


def _user(
    pid: int, limits: dict[str, int | None], status: dict[str, str], unknown: list[str]
) -> tuple[Limit, ...]:
    """RLIMIT_NPROC, which counts all threads of a user on the host, whatever the process."""
    most, user = limits["Max processes"], status["Uid"].split()[0]
    if most is None:
        return ()
    is_first = _has_whole_uid_map(pid)
    if is_first and (user == "0" or int(status["CapEff"], 16) & _EXEMPT):
        return ()
    if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
        unknown.append(f"threads of user {user} in other pid namespaces")
    return (Limit(f"RLIMIT_NPROC of user {user}", most, _threads_of(user)),)


def _has_whole_uid_map(pid: int) -> bool:
    """Return whether the process is in the first user namespace, or one that maps as it does."""
    return (process.read(f"{pid}/uid_map") or b"").split() == _WHOLE_UID_MAP


def _threads_of(user: str) -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                status = process.status(int(name))
            except OSError:
                continue  # it has exited
            if status["Uid"].split()[0] == user:
                count += int(status["Threads"])
    return count


def _system_wide() -> tuple[Limit, ...]:
    try:
        used = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
        names = {"kernel.threads-max": "threads-max", "kernel.pid_max": "pid_max"}
        return tuple(
            Limit(name, int(Path("/proc/sys/kernel", file).read_text()), used)
            for name, file in names.items()
        )
    except (OSError, ValueError, IndexError):
        return ()  # /proc/sys may be hidden; these limits are far off on every working host


def _memory(limits: dict[str, int | None], status: dict[str, str]) -> tuple[Limit, ...]:
    """Return the limits on address space, and on locked memory where QEMU locks its own."""
    found = []
    for name, limit, field in (
        ("RLIMIT_AS", "Max address space", "VmSize"),
        ("RLIMIT_MEMLOCK", "Max locked memory", "VmLck"),
    ):
        most, used = limits[limit], int(status.get(field, "0").split()[0]) * 1024
        # A QEMU that locks its memory (-overcommit mem-lock=on) locks each new stack as well.
        counts = name == "RLIMIT_AS" or (used and not int(status["CapEff"], 16) & 1 << 14)
        if most is not None and counts:
            found.append(Limit(name, most, used))
    return tuple(found)
