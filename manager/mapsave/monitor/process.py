"""What the kernel reports about a QEMU process (proc(5)); nothing here needs the monitor."""

import asyncio
import os
import re
import signal

NEVER = 2  # of ``overcommits``: all memory is reserved
SETUID = 7  # capabilities(7), linux/capability.h
_SYS_RESOURCE = 24
_SELF = "/proc/self/"
_STATUS_LINE = re.compile(r"^(\w+):\s+(.*)$", re.MULTILINE)
_MEMORY_FIELD = re.compile(rb"^(VmRSS|VmSwap|HugetlbPages):\s+(\d+) kB", re.MULTILINE)


def read(path: str) -> bytes | None:
    """Return what is in a file of /proc; None where its process is gone, or it may not be read."""
    try:
        with open(f"/proc/{path}", "rb") as file:
            return file.read()
    except OSError:
        return None


def stat(task: int | str | None) -> list[bytes] | None:
    """Return the fields of a task's ``stat`` from its state, the third, on; None as for ``read``.

    The second is the command in parentheses and may hold anything, so they count from its end.
    """
    raw = read(f"{task}/stat")
    return None if raw is None else raw.rpartition(b") ")[2].split()


def status(pid: int | None) -> dict[str, str]:
    """Return the lines of a process's ``status`` by their names. Raises OSError."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return dict(_STATUS_LINE.findall(file.read()))


def start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None if it is gone.

    Together with the pid this names a process even after its pid has been given to another.
    A process is gone when its last thread is: its first one is a zombie before that, while the
    others may still hold the guest's disks and memory.
    """
    fields = stat(pid)
    if fields is None:
        return None
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    return None if state in (b"Z", b"X") and threads <= 1 else started


def identity(pid: int | None) -> tuple[int, int] | None:
    """Return pid and start time of a process that lives; None where it is gone or not in sight."""
    started = start_time(pid) if pid is not None else None
    return (pid, started) if pid is not None and started is not None else None


def available_bytes() -> int:
    """Return how much memory programs may take without swapping (proc_meminfo(5)); 0: unknown."""
    found = re.search(rb"^MemAvailable:\s+(\d+) kB$", read("meminfo") or b"", re.MULTILINE)
    return int(found[1]) << 10 if found is not None else 0


def overcommits() -> int:
    """Return how the kernel grants memory (proc_sys_vm(5)): 0, 1 or 2; 0 where it is not told."""
    return int(read("sys/vm/overcommit_memory") or 0)


def committable_bytes() -> int | None:
    """Return how much memory may yet be reserved; None where there is no limit to that.

    See vm.overcommit_memory in proc_sys_vm(5).
    """
    if overcommits() != NEVER:
        return None
    known = dict(re.findall(rb"^(\w+):\s+(\d+) kB$", read("meminfo") or b"", re.MULTILINE))
    return max(0, int(known[b"CommitLimit"]) - int(known[b"Committed_AS"])) << 10


def alive(pid: int, started: int) -> bool:
    """Return whether the process that started at ``started`` under ``pid`` still runs."""
    return start_time(pid) == started


async def ended(pid: int, started: int) -> None:
    """Wait until the process is gone; pidfd_open(2): a pidfd is readable from then on."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        if alive(pid, started):  # else the pid is another's by now
            loop.add_reader(fd, over.set)
            await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def kill(pid: int, started: int) -> bool:
    """Kill the process that started at ``started`` under ``pid``; return whether that was done."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(pid, started):
            return False  # the pid is another's by now
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def with_argument(argument: str) -> int | None:
    """Return the pid of a process that has ``argument`` on its command line; None without one."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return next((pid for pid in pids if argument in command_line(pid)), None)


def is_zombie(pid: int | None) -> bool:
    """Return whether the process has ended but its parent has not asked for it yet."""
    return (stat(pid) or [b""])[0] == b"Z"


def of_thread(thread: int) -> int | None:
    """Return the pid of the process that a thread is of; None where there is no such thread."""
    match = re.search(rb"^Tgid:\s+(\d+)$", read(f"{thread}/status") or b"", re.MULTILINE)
    return int(match[1]) if match else None


def has_thread(pid: int, thread: int) -> bool:
    """Return whether the process has a thread that it knows by that id.

    Within a pid namespace of its own it knows it by another one than we do (NSpid, proc(5)).
    """
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    number = re.compile(rb"^NSpid:(?:.*\s)?%d$" % thread, re.MULTILINE)
    return any(number.search(read(f"{pid}/task/{task}/status") or b"") for task in tasks)


def command_line(pid: int) -> list[str]:
    """Return the arguments the process was started with; empty where they cannot be read."""
    raw = read(f"{pid}/cmdline") or b""
    return [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]


def working_directory(pid: int) -> str | None:
    """Return the process's working directory; None where it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def path_seen_by(pid: int | None, path: str) -> str:
    """Return by which path a file of the process is reached from here: it may be in another root.

    ``path`` itself where that cannot be told.
    """
    if pid is None:
        return path
    if path.startswith(_SELF):  # a descriptor of its own
        return f"/proc/{pid}/{path.removeprefix(_SELF)}"
    base = "root" if os.path.isabs(path) else "cwd"
    inside = f"/proc/{pid}/{base}/{path.lstrip('/')}"
    return inside if os.access(f"/proc/{pid}/{base}", os.X_OK) else path


def may_use_reserved_blocks(pid: int | None) -> bool:
    """Return whether the process may use the blocks that a file system reserves for root.

    ext4 asks for the file system's uid, or for CAP_SYS_RESOURCE (``fs/ext4/balloc.c``).
    """
    try:
        found = status(pid)
    except OSError:
        return False
    return has_capability(_SYS_RESOURCE, found) or found["Uid"].split()[3] == "0"


def has_capability(number: int, found: dict[str, str]) -> bool:
    """Return whether a process with that ``status`` has a capability in effect."""
    return bool(int(found.get("CapEff", "0"), 16) >> number & 1)


def resident_bytes(pid: int) -> int | None:
    """Return the bytes of memory the process has touched, swapped ones included.

    A page of RAM that was never touched is zero and costs an image nothing.
    """
    fields = dict(_MEMORY_FIELD.findall(read(f"{pid}/status") or b""))
    return sum(int(value) for value in fields.values()) * 1024 if fields else None


def unwritten_bytes() -> int:
    """Return how much of this host's page cache is still to be written; 0 where it is not said."""
    found = re.findall(rb"^(?:Dirty|Writeback):\s+(\d+) kB$", read("meminfo") or b"", re.MULTILINE)
    return sum(map(int, found)) * 1024


def boot_id() -> str | None:
    """Return what names this boot of the host (random(4)); None where the kernel reports none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None
