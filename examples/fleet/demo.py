"""Run a fleet of three hosts on one machine: a job, an evacuation, and its return.

    python demo.py POSTGRESQL MAPSAVE...

POSTGRESQL is the directory of its programs, MAPSAVE the command that runs mapsave. Everything is
made in a temporary directory, which is removed at the end; every process that was started is ended,
by its id.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTS = ("rack1-a", "rack1-b", "rack2-a")
GUESTS = ("web", "db")
_NO_ONE = 65534  # the user id of no one, on any Linux
_TIMEOUT = 150.0  # seconds that anything may take
# A unix socket's path has at most 107 bytes (unix(7)), of which mapsave's state takes some 50.
_LONGEST_DIRECTORY = 40


class Failed(Exception):
    """Something did not work; the text is for the user."""


class Demo:
    """The directory of one demonstration, and the processes that it has to end."""

    def __init__(self, postgresql: Path, mapsave: list[str], directory: Path) -> None:
        self.postgresql = postgresql
        self.mapsave = mapsave
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []
        # PostgreSQL refuses to run as root.
        self.user = _other_user() if os.geteuid() == 0 else None
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MAPSAVE_")},
            "MAPSAVE_FLEET": str(directory / "fleet.yaml"),
        }

    def sockets(self) -> list[Path]:
        """Return where guests listen, or have listened."""
        return list(self.directory.glob("*/*.qmp"))

    def start(self, name: str, *words: str, as_user: pwd.struct_passwd | None = None) -> None:
        """Start a process that is ended at the end; its output goes to the file ``name``.log."""
        ids = _ids(as_user)
        with (self.directory / f"{name}.log").open("wb") as log:
            self.started.append(
                subprocess.Popen(
                    words,
                    cwd=self.directory,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    user=ids[0],
                    group=ids[1],
                    extra_groups=ids[2],
                )
            )

    def run(self, *words: str, show: bool = True) -> str:
        """Run ``mapsave fleet``, show the command; return its output. Raises Failed."""
        if show:
            print("$ mapsave fleet", *words, flush=True)
        done = subprocess.run(
            [*self.mapsave, "fleet", *words],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT,
        )
        if done.returncode:
            print(done.stdout, end="")
            why = f"exit code {done.returncode}: {done.stderr or 'see above'}"
            raise Failed(f"mapsave fleet {' '.join(words)}: {why}")
        return done.stdout

    def show(self, *words: str) -> None:
        """Run ``mapsave fleet`` and print what it says."""
        print(self.run(*words).replace(f"{self.directory}/", ""), flush=True)

    def runs(self) -> dict[str, int]:
        """Return how many guests run on each host, as the sockets of their monitors say."""
        return {
            host: sum(_owner(path) is not None for path in (self.directory / host).glob("*.qmp"))
            for host in HOSTS
        }


def _other_user() -> pwd.struct_passwd:
    names = {each.pw_name for each in pwd.getpwall()}
    return pwd.getpwnam("postgres") if "postgres" in names else pwd.getpwuid(_NO_ONE)


def _ids(user: pwd.struct_passwd | None) -> tuple[int | None, int | None, list[int] | None]:
    return (None, None, None) if user is None else (user.pw_uid, user.pw_gid, [])


def start_postgresql(demo: Demo) -> None:
    """Make a cluster of our own that listens on a socket only, with a database for the fleet."""
    place = demo.directory / "pg"
    place.mkdir()
    if demo.user is not None:
        os.chown(place, demo.user.pw_uid, demo.user.pw_gid)
    ids = _ids(demo.user)

    def program(name: str, *words: str) -> None:
        done = subprocess.run(
            [str(demo.postgresql / name), *words],
            cwd=place,
            env={**demo.environment, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            user=ids[0],
            group=ids[1],
            extra_groups=ids[2],
        )
        if done.returncode:
            raise Failed(f"{name}: {done.stderr.strip() or done.stdout.strip()}")

    program(
        *("initdb", "-D", f"{place}/data", "-U", "postgres", "--auth=trust"),
        *("--encoding=UTF8", "--no-locale", "--no-sync"),
    )
    words = ["-D", f"{place}/data", "-k", str(place), "-c", "listen_addresses="]
    demo.start("postgresql", str(demo.postgresql / "postgres"), *words, as_user=demo.user)
    at = ["-h", str(place), "-U", "postgres"]

    def answers() -> bool:
        try:
            program("pg_isready", "-q", *at)
        except Failed:
            return False
        return True

    wait_for(demo, "PostgreSQL", answers)
    program("createuser", *at, "--createrole", "fleet")
    program("createdb", *at, "--owner=fleet", "fleet")


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file of YAML: JSON is YAML, and needs no quoting of paths with spaces."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def describe_fleet(demo: Demo) -> None:
    """Write fleet.yaml: what the hosts share, and a job over their guests."""
    write(
        demo.directory / "fleet.yaml",
        {
            "database": {"dsn": f"host={demo.directory}/pg dbname=fleet user=fleet"},
            "targets": {"nas1": {"saves": 2}, "nas2": {"saves": 1}},
            "hosts": {
                "rack1-*": {"target": "nas1", "saves": 2},
                "rack2-*": {"target": "nas2", "saves": 2},
            },
            "jobs": {"nightly": {"guests": ["*@*"], "save": {"then": "resume"}}},
        },
    )
    print("fleet.yaml:")
    text = (demo.directory / "fleet.yaml").read_text()
    print(text.replace(f"{demo.directory}/", ""), flush=True)


def start_host(demo: Demo, host: str) -> None:
    """Start a host: its guests, its service, and its agent."""
    place = demo.directory / host
    place.mkdir()
    demo.run("host", "add", host, "--dsn-file", str(place / "fleet.dsn"), show=False)
    guests = {}
    for number, name in enumerate(GUESTS):
        monitor = place / f"{name}.qmp"
        launch = [*demo.mapsave, "emulate", "--qmp", str(monitor), "--memory", "16M"]
        guests[name] = {"qmp": str(monitor), "launch": launch}
        words = ["--pattern", "random", "--seed", str(number)]
        demo.start(f"{host}/{name}", *launch, *words)
    write(
        place / "manager.yaml",
        {
            "images": "images",
            "state": "state",
            "socket": "mapsave.sock",
            "launch_environment": ["PATH", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"],
            "guests": guests,
            "fleet": {"host": host, "dsn_file": "fleet.dsn"},
        },
    )
    configured = [*demo.mapsave, "--config", str(place / "manager.yaml")]
    demo.start(f"{host}/mapsaved", *configured, "serve")
    demo.start(f"{host}/agent", *configured, "fleet", "agent")


def wait_for(demo: Demo, what: str, is_there: Callable[[], bool]) -> None:
    """Wait until something is true. Raises Failed where it does not become so."""
    deadline = time.monotonic() + _TIMEOUT
    while not is_there():
        gone = [each for each in demo.started if each.poll() not in (None, 0)]
        if gone or time.monotonic() > deadline:
            logs = "".join(
                f"\n{path.name}: {path.read_text(errors='replace')[-500:]}"
                for path in sorted(demo.directory.rglob("*.log"))
            )
            raise Failed(f"waiting for {what}{': a process has exited' if gone else ''}{logs}")
        time.sleep(0.1)


def known(demo: Demo, command: str, state: str, count: int) -> None:
    """Wait until agents have reported ``count`` guests or images in that state. Raises Failed."""

    def are_known() -> bool:
        with contextlib.suppress(Failed, ValueError):
            found = json.loads(demo.run(command, "--json", show=False))[command]
            return sum(each["facts"]["state"] == state for each in found) == count
        return False

    wait_for(demo, f"{count} {command} that are {state}", are_known)


def demonstrate(demo: Demo) -> None:
    """Do it all. Raises Failed."""
    started = time.monotonic()
    start_postgresql(demo)
    describe_fleet(demo)
    demo.show("init")
    demo.start("scheduler", *demo.mapsave, "fleet", "scheduler")
    for host in HOSTS:
        start_host(demo, host)
    count = len(HOSTS) * len(GUESTS)
    known(demo, "guests", "running", count)
    all_run = dict.fromkeys(HOSTS, len(GUESTS))
    demo.show("hosts")
    demo.show("run", "nightly", "--wait")
    known(demo, "images", "saved", count)
    demo.show("images")
    if demo.runs() != all_run:
        raise Failed(f"after the job these guests run: {demo.runs()}")
    demo.show("evacuate", HOSTS[0], "--wait")
    if demo.runs() != {**all_run, HOSTS[0]: 0}:
        raise Failed(f"after the evacuation these guests run: {demo.runs()}")
    known(demo, "guests", "running", count - len(GUESTS))
    demo.show("guests")
    demo.show("return", HOSTS[0], "--wait")
    if demo.runs() != all_run:
        raise Failed(f"after the return these guests run: {demo.runs()}")
    demo.show("ps", "--all")
    print(
        f"DONE: {len(HOSTS)} hosts, {count} guests saved; {HOSTS[0]} was evacuated, and its "
        f"guests run again ({time.monotonic() - started:.0f} s in all)"
    )


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory whose path is short enough for the sockets in it; remove it at the end."""
    made = Path(tempfile.mkdtemp(prefix="mapsave-fleet-"))
    if len(os.fsencode(made)) > _LONGEST_DIRECTORY:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix="mapsave-fleet-", dir="/tmp"))
    # PostgreSQL's own user reaches its part of it.
    made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def _owner(path: Path) -> int | None:
    """Return the id of the process that listens at the socket, SO_PEERCRED of unix(7)."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return None
        ucred = struct.Struct("iII")
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size)
        return int(ucred.unpack(found)[0])


def end_all(demo: Demo) -> None:
    """End what was started, the last first, and guests that a restore has started."""
    for process in reversed(demo.started):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in {_owner(path) for path in demo.sockets()} - {None}:
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in demo.sockets():
        while _owner(path) is not None:
            time.sleep(0.02)


def main() -> int:
    """Run the demonstration; 0 if all went well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    postgresql, *mapsave = sys.argv[1:]
    with temporary_directory() as directory:
        demo = Demo(Path(postgresql), mapsave, directory)
        try:
            demonstrate(demo)
        except (Failed, OSError, subprocess.TimeoutExpired) as error:
            print(f"quickstart: FAILED: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            end_all(demo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
