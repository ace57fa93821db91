"""Real QEMU for tests: started, looked at from outside, and gone at the end.

    with qemu.running(machine="q35", ram=patterns.dense) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        ...

Each QEMU has two monitors, since a QMP socket serves one client at a time: ``guest.qmp`` is for
mapsave, ``guest.control`` is the test's own.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from mapsave.config import EmulatedVersion

from tests.kit import cli, frail, need, patterns, processes, state, wait
from tests.kit import ram as guest_ram
from tests.kit.qmp import Client, connect, greeted
from tests.kit.wait import LONG

BINARY = os.environ.get("MAPSAVE_TEST_QEMU", "qemu-system-x86_64")
# Below lie the interrupt vectors, option ROMs and the firmware's shadow.
_LOW_MEMORY = 1 << 20


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
        """Return whether the process still runs."""
        if self._closed:
            return False
        try:
            processes.await_end(self._handle, 0)
        except TimeoutError:
            return True
        return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout: float = LONG) -> int | None:
        """Wait for QEMU to end; return its exit status, or None if it was not our child.

        Raises TimeoutError after ``timeout`` seconds.
        """
        processes.await_end(self._handle, timeout)
        return self.process.wait() if self.process else None

    def status(self) -> str:
        """Return the run state: ``prelaunch``, ``running``, ``postmigrate``, …"""
        return str(self.control.execute("query-status")["status"])

    def wait_status(self, *wanted: str, timeout: float = LONG) -> str:
        """Wait until the run state is one of ``wanted``; return it."""
        wait.until(lambda: self.status() in wanted, timeout=timeout, what=f"run state {wanted}")
        return self.status()

    def wait_migration(self, *wanted: str, timeout: float = LONG) -> dict[str, Any]:
        """Wait for ``query-migrate`` to say completed, failed or cancelled; return its answer.

        With ``wanted``, wait for one of these, and fail if it ends otherwise.
        """
        answer: dict[str, Any] = {}

        def ended() -> bool:
            answer.clear()
            answer.update(self.control.execute("query-migrate"))
            return answer.get("status") in {"completed", "failed", "cancelled", *wanted}

        wait.until(ended, timeout=timeout, what="end of the migration")
        assert not wanted or answer["status"] in wanted, answer
        return answer

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process (SIGSTOP), so that whoever talks to it waits; let it go on again."""
        self.kill(signal.SIGSTOP)
        try:
            yield
        finally:
            if self.alive():
                self.kill(signal.SIGCONT)

    def state(self) -> state.State:
        """Return what mapsave must leave as it was; see ``state.assert_left_as_found``."""
        return state.of(self.control)

    def successor(self) -> AbstractContextManager["Qemu"]:
        """Take over the QEMU that ``mapsave restore`` started from ``argv``, after this one quit.

        It is gone at the end.
        """
        return adopted(self.directory, self.name, self.argv)

    def fill_ram(self, pattern: patterns.Pattern) -> None:
        """Fill its RAM with a pattern; see ``fill_ram()`` of this module."""
        fill_ram(self.ram, pattern)

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
        frail.note(self.process.wait(LONG))


def fill_ram(ram: guest_ram.LiveRam, pattern: patterns.Pattern) -> None:
    """Fill every RAM block of more than a MiB beyond its first MiB, each with its own seed.

    The firmware has nothing there before the guest runs. Without such a block, the second half of
    the largest one is filled.
    """
    lengths = ram.lengths()
    blocks = [name for name, length in lengths.items() if length > _LOW_MEMORY]
    for seed, name in enumerate(blocks or [ram.largest()], 1):
        start = min(_LOW_MEMORY, lengths[name] // 2)
        ram.write(name, start, pattern(lengths[name] - start, seed=seed))


def has_kvm() -> bool:
    """Return whether this process may use KVM."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def command(
    *arguments: str,
    directory: Path,
    name: str = "guest",
    machine: str = "pc",
    memory: str = "64M",
    accel: str = "tcg",
    sandbox: bool = False,
    under: Sequence[str] = (),
) -> list[str]:
    """Return the command line of a guest whose two monitors are in ``directory``.

    ``under``: the words before it, of a command that becomes QEMU, such as ``runcon CONTEXT``.
    """
    base = [*under, BINARY, "-name", name, "-display", "none", "-nodefaults", "-no-user-config"]
    base += ["-machine", machine, "-m", memory, "-accel", accel]
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


@functools.cache
def version(binary: str) -> tuple[int, ...]:
    """Return the version of a QEMU: (11, 1, 3)."""
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    assert match is not None, text
    return tuple(map(int, match.groups()))


def emulated_version() -> EmulatedVersion:
    """Return the version that the emulator must play to be like ``BINARY``.

    Of those that it knows, the newest that is not newer; without a QEMU its default.
    """
    known: tuple[EmulatedVersion, ...] = get_args(EmulatedVersion)
    if unavailable():
        return known[0]
    fitting = [each for each in known if tuple(map(int, each.split("."))) <= version(BINARY)]
    return (fitting or list(known))[-1]


def unavailable() -> str | None:
    """Say why no QEMU can be run here, or return None."""
    return None if shutil.which(BINARY) else f"there is no {BINARY}"


@contextmanager
def running(
    *arguments: str,
    name: str = "guest",
    machine: str = "pc",
    memory: str = "64M",
    accel: str = "tcg",
    paused: bool = True,
    incoming: bool = False,
    user: int | None = None,
    sandbox: bool = False,
    ram: patterns.Pattern | None = None,
    directory: Path | None = None,
    under: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Qemu]:
    """Run a QEMU with these ``arguments`` on top; it is gone at the end.

    ``paused``: with ``-S``. ``incoming``: with ``-incoming defer``. ``accel``: where KVM
    is itself a virtual one, the firmware of a guest that runs takes a processor for seconds.
    ``user``: uid and gid to run as, without supplementary groups. ``ram``: see ``fill_ram``; with
    ``paused=False`` the guest is continued after that. ``directory``: where the monitors are,
    instead of a directory of its own. ``under``: see ``command()``. ``env``: added to its
    environment, such as what ``inject.environment`` returns.

    Skips the test where there is no QEMU. Raises AssertionError with QEMU's standard error when it
    does not come up.
    """
    need.skip_if(unavailable())
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
            under=under,
        )
        switches = ["-S"] if paused or ram else []
        switches += ["-incoming", "defer"] if incoming else []
        guest = stack.enter_context(_started(argv, switches, place, name, user, env))
        if ram:
            guest.fill_ram(ram)
            if not paused:
                guest.control.execute("cont")
        yield guest


@contextmanager
def guest(site: cli.Site, name: str, *arguments: str, **options: Any) -> Iterator[Qemu]:
    """Run a QEMU as ``running`` does, and add it to the site, which knows how to start it again."""
    with running(*arguments, name=name, **options) as found:
        site.add_guest(name, found.qmp, launch=found.argv)
        yield found


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
    argv: list[str],
    switches: list[str],
    directory: Path,
    name: str,
    user: int | None,
    env: Mapping[str, str] | None,
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
            env=env,
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
    def connected() -> Client | None:
        status = process.poll()
        stderr = _stderr_of(directory, name)
        assert status is None, f"QEMU did not come up, exit status {status}: {stderr}"
        # A socket file of an earlier QEMU may still be there, or this one may be about to end.
        with suppress(FileNotFoundError, ConnectionError, TimeoutError):
            return greeted(directory / f"{name}.control")
        return None

    return wait.until(connected, what="QEMU's monitor")


def _stderr_of(directory: Path, name: str) -> str:
    path = directory / f"{name}.stderr"
    return path.read_text(errors="replace") if path.exists() else ""
