"""Real QEMU for tests: started, looked at from outside, and gone at the end.

    with qemu.running(machine="q35", ram=patterns.dense) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        ...

Each QEMU has two monitors, since a QMP socket serves one client at a time: ``guest.qmp`` is for
mapsave, ``guest.control`` is the test's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kit import processes
from tests.kit import ram as guest_ram
from tests.kit.qmp import Client, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kit import patterns

BINARY = os.environ.get("MAPSAVE_TEST_QEMU", "qemu-system-x86_64")
# Below lie the interrupt vectors, option ROMs and the firmware's shadow.
_LOW_MEMORY = 1 << 20


@dataclass(frozen=True)
class State:
    """What a save or restore must leave as it was."""

    capabilities: dict[str, bool]
    parameters: dict[str, Any]
    fdsets: list[dict[str, Any]]
    run_state: str


def assert_left_as_found(before: State, after: State, *, run_state: str | None = None) -> None:
    """Fail unless QEMU is as it was; ``run_state`` if another one is meant to be left behind."""
    assert after.capabilities == before.capabilities, "capabilities were not put back"
    assert after.parameters == before.parameters, "parameters were not put back"
    assert after.fdsets == before.fdsets, "fdsets were left behind or taken away"
    assert after.run_state == (run_state or before.run_state)


@dataclass
class Qemu:
    """A QEMU that runs, or ran.

    ``argv`` is its whole command line without ``-incoming`` and ``-S``: fit for a guest's
    ``launch`` in the configuration. ``qmp`` is the monitor socket for mapsave.
    """

    name: str
    argv: list[str]
    directory: Path
    pid: int
    control: Client
    process: subprocess.Popen[bytes] | None
    ram: guest_ram.LiveRam = field(init=False)
    _handle: int = field(init=False)
    _closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.ram = guest_ram.LiveRam(self.pid, self.control)
        self._handle = os.pidfd_open(self.pid)

    @property
    def qmp(self) -> Path:
        """The monitor socket for mapsave."""
        return self.directory / f"{self.name}.qmp"

    @property
    def address(self) -> str:
        """The guest as ``mapsave save`` takes it: ``qmp:PATH``."""
        return f"qmp:{self.qmp}"

    def stderr(self) -> str:
        """Return what QEMU has printed on standard error (not known of an adopted one)."""
        return _stderr_of(self.directory, self.name)

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        if self._closed:
            return False
        try:
            processes.await_end(self._handle, 0)
        except TimeoutError:
            return True
        return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout: float = 20.0) -> int | None:
        """Wait for QEMU to end; return its exit status, or None if it was not our child.

        Raises TimeoutError after ``timeout`` seconds.
        """
        processes.await_end(self._handle, timeout)
        return self.process.wait() if self.process else None

    def status(self) -> str:
        """Return the run state: ``prelaunch``, ``running``, ``postmigrate``, …"""
        return str(self.control.execute("query-status")["status"])

    def wait_status(self, *wanted: str, timeout: float = 20.0) -> str:
        """Wait until the run state is one of ``wanted``; return it."""
        deadline = time.monotonic() + timeout
        while (status := self.status()) not in wanted:
            assert time.monotonic() < deadline, f"run state is {status}, not one of {wanted}"
            time.sleep(0.01)
        return status

    def wait_migration(self, *wanted: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait for ``query-migrate`` to say completed, failed or cancelled; return its answer.

        With ``wanted``, wait for one of these, and fail if it ends otherwise.
        """
        ends = {"completed", "failed", "cancelled", *wanted}
        deadline = time.monotonic() + timeout
        while True:
            answer: dict[str, Any] = self.control.execute("query-migrate")
            if answer.get("status") in ends:
                assert not wanted or answer["status"] in wanted, answer
                return answer
            assert time.monotonic() < deadline, f"the migration does not end: {answer}"
            time.sleep(0.005)

    def state(self) -> State:
        """Return what mapsave must leave as it was."""
        capabilities = self.control.execute("query-migrate-capabilities")
        return State(
            {entry["capability"]: entry["state"] for entry in capabilities},
            self.control.execute("query-migrate-parameters"),
            self.control.execute("query-fdsets"),
            self.status(),
        )

    def snapshot_ram(self, directory: Path) -> guest_ram.Snapshot:
        """Copy the RAM of the guest, which must not be running, into ``directory``."""
        assert self.status() != "running", "the RAM of a running guest changes while it is copied"
        return guest_ram.snapshot(self.ram, directory)

    def ram_digests(self) -> dict[str, str]:
        """Return the SHA-256 of every RAM block, by name."""
        return guest_ram.digests(self.ram)

    def close(self) -> None:
        """End QEMU, if it still runs, and let go of it."""
        self.control.close()
        processes.end(self.pid) if self.process is None else self._reap()
        os.close(self._handle)
        self._closed = True

    def _reap(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)


def has_kvm() -> bool:
    """Tell whether this process may use KVM."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def command(
    *arguments: str,
    directory: Path,
    name: str = "guest",
    machine: str = "pc",
    memory: str = "64M",
    accel: str | None = None,
    sandbox: bool = False,
) -> list[str]:
    """Return the command line of a guest whose two monitors are in ``directory``."""
    base = [BINARY, "-name", name, "-display", "none", "-nodefaults", "-no-user-config"]
    base += ["-machine", machine, "-m", memory, "-accel", accel or ("kvm" if has_kvm() else "tcg")]
    for kind in ("qmp", "control"):
        base += ["-qmp", f"unix:{directory}/{name}.{kind},server=on,wait=off"]
    if sandbox:
        base += ["-sandbox", "on"]
    return [*base, *arguments]


@contextmanager
def directory_for(user: int | None = None) -> Iterator[Path]:
    """Make a directory for sockets: its path is short, as unix(7) wants, and ``user`` owns it."""
    directory = Path(tempfile.mkdtemp(prefix="mapsave-"))
    try:
        if user is not None:
            os.chown(directory, user, user)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def running(
    *arguments: str,
    name: str = "guest",
    machine: str = "pc",
    memory: str = "64M",
    accel: str | None = None,
    paused: bool = True,
    incoming: bool = False,
    user: int | None = None,
    sandbox: bool = False,
    ram: patterns.Pattern | None = None,
    directory: Path | None = None,
) -> Iterator[Qemu]:
    """Run a QEMU with these ``arguments`` on top; it is gone at the end.

    ``paused``: with ``-S``. ``incoming``: with ``-incoming defer``. ``accel``: KVM if usable.
    ``user``: uid and gid to run as, without supplementary groups. ``ram``: what fills the largest
    RAM block beyond its first MiB, before the guest runs (with ``paused=False`` the guest is then
    continued). ``directory``: where the monitors are; otherwise one of its own.

    Raises AssertionError with QEMU's standard error when it does not come up.
    """
    if user is not None and accel is None:
        accel = "tcg"  # /dev/kvm is usually closed to other users.
    with ExitStack() as stack:
        place = directory or stack.enter_context(directory_for(user))
        argv = command(
            *arguments,
            directory=place,
            name=name,
            machine=machine,
            memory=memory,
            accel=accel,
            sandbox=sandbox,
        )
        switches = ["-S"] if paused or ram else []
        switches += ["-incoming", "defer"] if incoming else []
        guest = stack.enter_context(_started(argv, switches, place, name, user))
        if ram:
            _fill(guest, ram)
            if not paused:
                guest.control.execute("cont")
        yield guest


@contextmanager
def adopted(directory: Path, name: str = "guest", argv: Sequence[str] = ()) -> Iterator[Qemu]:
    """Take over a QEMU that somebody else (``mapsave restore``) started; it is gone at the end.

    Its command line must be one of ``command()`` with the same ``directory`` and ``name``.
    """
    control = connect(directory / f"{name}.control")
    guest = Qemu(name, list(argv), directory, control.peer_pid(), control, None)
    try:
        yield guest
    finally:
        guest.close()


@contextmanager
def _started(
    argv: list[str], switches: list[str], directory: Path, name: str, user: int | None
) -> Iterator[Qemu]:
    rights: dict[str, Any] = (
        {} if user is None else {"user": user, "group": user, "extra_groups": []}
    )
    with (
        (directory / f"{name}.stderr").open("wb") as stderr,
        processes.running(
            [*argv, *switches],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            cwd=directory,
            **rights,
        ) as process,
    ):
        guest = Qemu(
            name, argv, directory, process.pid, _control(process, directory, name), process
        )
        try:
            yield guest
        finally:
            guest.close()


def _control(process: subprocess.Popen[bytes], directory: Path, name: str) -> Client:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            return Client(directory / f"{name}.control")
        except (OSError, TimeoutError):
            if process.poll() is not None:
                break
            time.sleep(0.005)
    raise AssertionError(f"QEMU did not come up: {_stderr_of(directory, name) or process.poll()}")


def _stderr_of(directory: Path, name: str) -> str:
    path = directory / f"{name}.stderr"
    return path.read_text(errors="replace") if path.exists() else ""


def _fill(guest: Qemu, pattern: patterns.Pattern) -> None:
    """Fill the guest's main memory where the firmware has nothing yet."""
    block = guest.ram.largest()
    length = guest.ram.lengths()[block]
    start = min(_LOW_MEMORY, length // 2)
    guest.ram.write(block, start, pattern(length - start))
