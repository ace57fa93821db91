"""A PostgreSQL of the tests' own: the system's clusters are neither read, changed nor started.

    with postgres.running() as cluster:
        cluster.sql("SELECT 1")

It listens on a Unix socket in a directory of its own, and writes nothing elsewhere. Its processes
do not carry the kit's mark (``processes``): a test would end those that a cluster of a wider scope
forks meanwhile. They end with the process that has started them (PR_SET_PDEATHSIG, prctl(2)).
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit import need, wait

OWNER = "mapsave"  # owns the databases of fleets; no superuser
PORT = "5432"  # part of the socket's name only
_USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
_INSTALLED = Path("/usr/lib/postgresql")
# The first line that matches counts: passwords for all but these two.
_HBA = f"""\
local all postgres trust
local all {OWNER} trust
local all all scram-sha-256
local replication postgres trust
"""
_SETTINGS = {
    "listen_addresses": "''",
    "max_connections": "200",
    "shared_buffers": "'32MB'",
    "log_min_messages": "warning",
    "autovacuum": "off",
    "max_wal_size": "'256MB'",
}


def binaries() -> Path | None:
    """Return the directory of PostgreSQL's programs, of the newest version; None without one."""
    found = [path for path in _INSTALLED.glob("*/bin") if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    program = shutil.which("initdb")
    return Path(program).resolve().parent if program else None


def unavailable() -> str | None:
    """Return why no cluster can be made here, or None."""
    return None if binaries() else "PostgreSQL is not installed"


@dataclass
class Cluster:
    """A cluster: its data in ``directory/data``, its socket in ``directory``."""

    directory: Path
    durable: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)  # beside the usual ones
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def dsn(self, database: str, user: str = OWNER) -> str:
        """Return the connection string of a role that needs no password."""
        return f"host={self.directory} port={PORT} dbname={database} user={user}"

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of PostgreSQL's programs as the cluster's user; return its output."""
        done = subprocess.run(
            [*_as_user(), str(_program(program)), *map(str, arguments)],
            env=_environment(self.directory),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=wait.LONG,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def sql(self, query: str, database: str = "postgres", user: str = "postgres") -> str:
        """Run statements, as a superuser if not told otherwise; return rows as psql -At does."""
        words = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query, self.dsn(database, user)]
        return self.run("psql", *words).strip()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = dict(_SETTINGS)
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        settings |= self.settings
        # What pg_basebackup -R writes is in postgresql.auto.conf.
        (self.data / "postgresql.conf").write_text(
            "".join(f"{key} = {value}\n" for key, value in settings.items())
            + f"unix_socket_directories = '{self.directory}'\n"
        )
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*_as_user("--pdeathsig", "QUIT"), str(_program("postgres")), "-D", str(self.data)],
                env=_environment(self.directory),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait.until(self._answers, what="PostgreSQL's start")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()[-4000:]
        command = [str(_program("pg_isready")), "-q", "-h", str(self.directory), "-p", PORT]
        return subprocess.run(command, timeout=wait.LONG, check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT ends connections, SIGQUIT at once, SIGKILL as a crash does."""
        if self.process is None:
            return
        if how == signal.SIGKILL:
            # All of it, at the same moment: what is left of a host that has lost its power.
            for pid in [*self._children(), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            self.process.send_signal(how)
        self.process.wait(wait.LONG)
        self.process = None

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def trust_all(self) -> None:
        """Let every role in without a password, from now on."""
        (self.data / "pg_hba.conf").write_text("local all all trust\n")
        self.sql("SELECT pg_reload_conf()")

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server by a signal and start it again."""
        self.stop(how)
        self.start()


@contextlib.contextmanager
def running(
    *, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Make a cluster and run it; remove it at the end. Without PostgreSQL the test is left out."""
    need.skip_if(unavailable())
    with _directory() as directory:
        cluster = Cluster(directory, durable, settings or {})
        how = ["--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        cluster.run("initdb", "-D", cluster.data, "-U", "postgres", *how)
        (cluster.data / "pg_hba.conf").write_text(_HBA)
        with started(cluster):
            cluster.sql(f"CREATE ROLE {OWNER} LOGIN CREATEROLE")
            yield cluster


@contextlib.contextmanager
def started(cluster: Cluster) -> Iterator[None]:
    """Run a cluster that is there, and end it, whatever has become of it."""
    cluster.start()
    try:
        yield
    finally:
        cluster.stop(signal.SIGQUIT)


@contextlib.contextmanager
def copied(cluster: Cluster, *, is_standby: bool = False) -> Iterator[Cluster]:
    """Take a base backup of a cluster that runs; yield the copy, which was not started yet.

    One that ``is_standby`` follows the cluster until it is promoted.
    """
    with _directory() as directory:
        copy = Cluster(directory, cluster.durable)
        how = ["--checkpoint=fast", "--no-sync", "-X", "stream", *(["-R"] if is_standby else [])]
        cluster.run("pg_basebackup", "-d", cluster.dsn("", "postgres"), "-D", copy.data, *how)
        try:
            yield copy
        finally:
            copy.stop(signal.SIGQUIT)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Yield a directory of the cluster's user, whose path is short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="mspg"))
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam(_user())
            os.chown(directory, user.pw_uid, user.pw_gid)
        yield directory
    finally:
        shutil.rmtree(directory)


def _program(name: str) -> Path:
    directory = binaries()
    assert directory is not None
    return directory / name


def _user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _USERS if name in names)


def _as_user(*options: str) -> list[str]:
    """Return the words before a command that has to run as the cluster's user."""
    if os.geteuid() != 0:
        return ["setpriv", *options] if options else []
    group = str(pwd.getpwnam(_user()).pw_gid)
    return ["setpriv", "--reuid", _user(), "--regid", group, "--clear-groups", *options]


def _environment(directory: Path) -> dict[str, str]:
    # Nothing of libpq's variables, which whoever runs the tests may have set.
    kept = {key: value for key, value in os.environ.items() if re.fullmatch("PATH|LD_.*", key)}
    return {**kept, "LC_ALL": "C", "HOME": str(directory), "TZ": "UTC"}
