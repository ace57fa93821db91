"""A libvirtd of the tests' own: nothing of the system's libvirt is read, changed or started.

    with libvirtd.running() as daemon, domain.running(daemon, "web01", ram=patterns.dense) as guest:
        daemon.virsh("save", guest.uuid, image)

The daemon of ``running()`` is root's, as ``qemu:///system`` is. It lives in namespaces of its own
(unshare(1)): its ``/etc/libvirt``, ``/var/{lib,log,cache}/libvirt`` and all of ``/run`` are private
directories, so it meets neither D-Bus nor systemd-machined; it sees no control groups and no
network. All other paths are the same inside and outside, but for file systems that are mounted
while it runs: it sees those only where mounts propagate (mount_namespaces(7)), so mount first.
"""

import functools
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit import frail, libvirt_files, need, processes, qemu, wait

LEAST = (11, 2)  # the first libvirt that saves in the sparse format (libvirt's NEWS)
NOBODY = 65534
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_REAPER = [sys.executable, "-IS", str(Path(__file__).with_name("reaper.py"))]
# virtlogd, which would hold the guests' logs, belongs to the system: files instead.
_QEMU_CONF = """\
stdio_handler = "file"
security_driver = "none"
remember_owner = 0
cgroup_controllers = []
"""
_AS_ROOT = 'user = "root"\ngroup = "root"\n'
_DAEMON_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
_PRIVATE = ("etc/libvirt", "var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt", "run")
# "$1" is the directory that holds the private ones, the rest is libvirtd's command line.
_ENTER = f"""
set -e
private=$1
shift
umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || true
for place in {" ".join(_PRIVATE)}; do mount --bind "$private/$place" "/$place"; done
exec "$@"
"""


@dataclass
class Daemon:
    """A libvirtd that runs, ran, or was killed; guests outlive it until the end of the test.

    ``uri`` connects to it from anywhere on this machine. ``directory`` holds all that it writes.
    ``env`` and ``user`` are those of its owner, for whom ``qemu:///session`` is this daemon if it
    is one of ``session()``. Without ``reaper`` its guests are left to process 1 when they end.
    """

    uri: str
    socket: Path
    directory: Path
    argv: list[str]
    user: int = 0
    env: dict[str, str] = field(default_factory=dict)
    reaper: bool = True
    pid: int = field(init=False, default=0)
    _handle: int = field(init=False, default=-1)
    _children: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)
    _killed: bool = field(init=False, default=False)

    @property
    def log(self) -> str:
        """What the daemon has logged: warnings and errors, of all its lives."""
        return (self.directory / "libvirtd.log").read_text(errors="replace")

    @property
    def crashed(self) -> bool:
        """Whether the daemon has ended without being told to."""
        return not self.alive() and not self._killed

    def alive(self) -> bool:
        """Return whether the daemon runs."""
        return self._handle >= 0 and not processes.has_ended(self._handle)

    def virsh(
        self, *arguments: str | os.PathLike[str], check: bool = True, timeout: float = wait.LONG
    ) -> subprocess.CompletedProcess[str]:
        """Run ``virsh`` on this daemon; with ``check``, fail with its words unless it succeeds.

        Files are given as ``Path``, and what the daemon sees there must be what we see.
        """
        for path in arguments:
            assert not isinstance(path, Path) or self._sees(path), f"libvirtd does not see {path}"
        done = subprocess.run(
            ["virsh", "--connect", self.uri, *arguments],
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        words = " ".join(map(str, arguments))
        assert not check or done.returncode == 0, f"virsh {words}: {done.stderr}{done.stdout}"
        return done

    def domains(self) -> list[str]:
        """Return the uuids of all domains, those that are shut off included."""
        return self.virsh("list", "--all", "--uuid").stdout.split()

    def clear(self) -> None:
        """Destroy and undefine every domain, with all that libvirt keeps of it."""
        for uuid in self.domains():
            # Either may be done already: the domain is shut off, or it was transient.
            self.virsh("destroy", uuid, check=False)
            everything = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
            self.virsh("undefine", uuid, *everything, check=False)
        assert self.domains() == []

    def kill(self) -> None:
        """Kill the daemon (SIGKILL); its guests live on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon in an orderly way (SIGTERM); its guests live on."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start the daemon again on what it left, and wait until it answers."""
        if self.alive():
            self.stop()
        self.start()

    def start(self) -> None:
        """Start the daemon, and wait until it answers.

        Raises AssertionError with its log when it does not come up.
        """
        pid_file = self.directory / "pid"
        pid_file.unlink(missing_ok=True)
        around = [*_REAPER, str(pid_file), str(frail.log())] if self.reaper else []
        with (self.directory / "libvirtd.log").open("ab") as log:
            child = subprocess.Popen(
                [*around, *self.argv],
                env=processes.environment({"PATH": _PATH, **self.env}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        self._children.append(child)
        self._killed = False
        self.pid = child.pid  # all that argv runs before libvirtd becomes it (execve(2))
        if self.reaper:
            wait.until(lambda: pid_file.exists() or child.poll(), what="start of libvirtd")
            self.pid = int(pid_file.read_text())
        self._let_go()
        self._handle = os.pidfd_open(self.pid)
        wait.until(self._answers, what="libvirtd")

    def guests(self) -> list[int]:
        """Return the process ids of QEMUs and helpers that this daemon has started."""
        return [pid for pid in libvirt_files.belonging_to(self.directory) if pid != self.pid]

    def close(self) -> None:
        """End the daemon and all its guests."""
        try:
            self.stop()
        finally:
            for pid in self.guests():
                processes.end(pid)
            for child in self._children:
                child.wait(wait.LONG)
            self._let_go()
        assert self.guests() == []

    def _answers(self) -> bool:
        assert not self.crashed, f"libvirtd ended: {self.log}"
        if not self.socket.exists():
            return False
        return self.virsh("version", check=False).returncode == 0

    def _sees(self, path: Path) -> bool:
        """Return whether the daemon, if it runs, has our directory of ``path`` at this place."""
        if not self.alive():
            return True
        inside = Path(f"/proc/{self.pid}/root{path.parent.resolve()}")
        return inside.exists() and inside.samefile(path.parent)

    def _end(self, number: signal.Signals) -> None:
        if not self.alive():
            return
        self._killed = True
        signal.pidfd_send_signal(self._handle, number)
        try:
            processes.await_end(self._handle, wait.LONG)
        except TimeoutError:
            processes.end(self.pid)
            raise

    def _let_go(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


@contextmanager
def running(*, qemu_conf: str = "", daemon_conf: str = "", reaper: bool = True) -> Iterator[Daemon]:
    """Run a private libvirtd in system mode, as root; it and all its guests are gone at the end.

    ``qemu_conf`` and ``daemon_conf`` are further lines of ``qemu.conf`` and ``libvirtd.conf``.
    ``reaper``: guests that end are reaped at once, whatever the host's process 1 does.
    """
    need.skip_if(unavailable())
    with qemu.directory_for() as directory:
        directory.chmod(0o755)
        for place in _PRIVATE:
            (directory / place).mkdir(parents=True)
        configuration = directory / "etc/libvirt"
        (configuration / "qemu.conf").write_text(_QEMU_CONF + _AS_ROOT + qemu_conf)
        (configuration / "libvirtd.conf").write_text(_DAEMON_CONF + daemon_conf)
        socket = directory / "run/libvirt/libvirt-sock"
        enter = ["unshare", "--mount", "--net", "--propagation=slave", "sh", "-c", _ENTER, "sh"]
        argv = [*enter, str(directory), "libvirtd"]
        uri = f"qemu+unix:///system?socket={socket}"
        daemon = Daemon(uri, socket, directory, argv, reaper=reaper)
        with libvirt_files.capabilities_kept(
            "system", directory / "var/cache/libvirt/qemu", daemon.user
        ):
            yield from _lifetime(daemon)


@contextmanager
def session(*, user: int = NOBODY, qemu_conf: str = "") -> Iterator[Daemon]:
    """Run a libvirtd in session mode for the ordinary ``user``, with a home of its own.

    It and all its guests are gone at the end.
    """
    need.skip_if(unavailable())
    with qemu.directory_for(user) as directory:
        homes = {
            "HOME": "home",
            "XDG_CONFIG_HOME": "config",
            "XDG_CACHE_HOME": "cache",
            "XDG_DATA_HOME": "data",
            "XDG_STATE_HOME": "state",
            "XDG_RUNTIME_DIR": "run",
        }
        env = {name: str(directory / place) for name, place in homes.items()}
        env["USER"] = env["LOGNAME"] = pwd.getpwuid(user).pw_name
        (directory / "config/libvirt").mkdir(parents=True)
        (directory / "config/libvirt/qemu.conf").write_text(_QEMU_CONF + qemu_conf)
        for place in homes.values():
            (directory / place).mkdir(exist_ok=True, mode=0o700)
        socket = directory / "run/libvirt/libvirt-sock"
        uri = f"qemu+unix:///session?socket={socket}"
        rights = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        daemon = Daemon(uri, socket, directory, [*rights, "libvirtd"], user, env)
        with libvirt_files.capabilities_kept(
            "session", directory / "cache/libvirt/qemu/cache", user
        ):
            libvirt_files.give(directory, user)
            yield from _lifetime(daemon)


@contextmanager
def embedded(*, qemu_conf: str = "") -> Iterator[str]:
    """Yield a URI of the embedded driver, which runs inside whoever opens it (as root).

    One process at a time may have it open. Its guests live on when that ends, and are found by the
    next; at the end of the test they are killed.
    """
    need.skip_if(unavailable())
    with qemu.directory_for() as directory:
        (directory / "etc").mkdir()
        (directory / "etc/qemu.conf").write_text(_QEMU_CONF + _AS_ROOT + qemu_conf)
        try:
            with libvirt_files.capabilities_kept("embedded", directory / "cache/qemu", 0):
                yield f"qemu:///embed?root={directory}"
        finally:
            for pid in libvirt_files.belonging_to(directory):
                processes.end(pid)


@functools.cache
def unavailable() -> str | None:
    """Say why there is no libvirtd for tests on this machine, or return None."""
    if importlib.util.find_spec("libvirt") is None:
        return "libvirt-python is not installed"
    if reason := qemu.unavailable() or need.root():
        return reason
    for command in ("libvirtd", "virsh"):
        found = shutil.which(command, path=_PATH)
        if found is None:
            return f"there is no {command}"
        output = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"(\d+)\.(\d+)\.\d+", output.stdout)
        if version is None or tuple(map(int, version.groups())) < LEAST:
            wanted = ".".join(map(str, LEAST))
            return f"{command} is older than {wanted}: {output.stdout}{output.stderr}".strip()
    return None


def _lifetime(daemon: Daemon) -> Iterator[Daemon]:
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()
