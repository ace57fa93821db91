"""A real ``mapsave serve`` for tests, and a plain client for it.

    with service.running(site) as mapsaved:
        mapsaved.get("/v1/health")

The service is a process of its own. ``site.run(...)`` uses it, as its socket is there; with
``--local`` it does not.
"""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsave import unix_socket
from mapsave.history.states import ENDED

from tests.kit import cli, processes, tree, wait


@dataclass(frozen=True)
class Answer:
    """What the service answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"]["id"])


def connect(path: Path, timeout: float = wait.LONG) -> socket.socket:
    """Return a connection to a unix socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with unix_socket.to_connect(path) as address:
            sock.connect(address)  # blocking: waits where many connect at once
        sock.settimeout(timeout)
    except OSError:
        sock.close()
        raise
    return sock


def request(
    path: Path,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request over a connection of its own, and return the answer."""
    connection = http.client.HTTPConnection("mapsaved")
    connection.sock = connect(path)
    try:
        connection.request(method, target, body, dict(headers or {}))
        found = connection.getresponse()
        return Answer(found.status, dict(found.getheaders()), found.read())
    finally:
        connection.close()


@dataclass
class Service:
    """A service that runs, or ran."""

    site: cli.Site
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        """The service's process id."""
        return self.process.pid

    def request(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request with ``body`` as JSON."""
        raw = None if body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        return request(self.site.socket, method, target, raw, {**kind, **(headers or {})})

    def get(self, target: str, status: int = 200) -> Any:
        """Return the JSON at a path; fail if the status is another."""
        answer = self.request("GET", target)
        assert answer.status == status, answer
        return answer.json()

    def begin(self, status: int = 202, **body: Any) -> Any:
        """Begin an operation; return it, or the error that the status stands for."""
        answer = self.request("POST", "/v1/operations", body)
        assert answer.status == status, answer
        if status == 202:
            assert answer.headers["Location"] == f"/v1/operations/{answer.json()['id']}"
        return answer.json()

    def ended(self, operation: str, timeout: float = wait.LONG) -> Any:
        def over() -> Any:
            found = self.get(f"/v1/operations/{operation}")
            return found if found["state"] in ENDED else None

        return wait.until(over, timeout=timeout, what=f"end of operation {operation}")

    def done(self, **body: Any) -> Any:
        """Do an operation to its end, which must be a good one; return its result."""
        found = self.ended(self.begin(**body)["id"])
        assert found["state"] == "done", found
        return found["result"]

    def logged(self) -> str:
        """Return what the service has logged so far."""
        return self.log.read_text()

    def await_log(self, words: str) -> None:
        """Wait until the service has logged ``words``."""
        wait.until(lambda: words in self.logged(), what=f"{words!r} in the log")

    def await_recovery(self) -> None:
        """Wait until nothing is left to recover, or to look for: the service is settled."""
        wait.until(lambda: self.get("/v1/health")["recovered"], what="the end of the recovery")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, timeout: float = wait.LONG) -> int:
        """Stop the service by SIGTERM; return its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """Kill the service as a crash would."""
        self.process.kill()
        self.process.wait(wait.LONG)


@contextlib.contextmanager
def started(
    site: cli.Site,
    *options: str,
    command: list[str] | None = None,
    env: Mapping[str, str] | None = None,
    digests: bool = False,
    **popen: Any,
) -> Iterator[Service]:
    """Start a service without waiting for it; it is killed at the end if it still runs.

    ``command`` is what runs ``mapsave``, to which its arguments are added. Without ``digests`` it
    takes none: it would write to images at a time of its own.
    """
    if not digests:
        site.settings["save"] = {"digests": "off", **site.settings.get("save", {})}
        site.write()
    log = site.directory / "service.log"
    words = [*(command or cli.COMMAND), "--config", str(site.config), "serve", *options]
    with (
        log.open("a") as output,
        processes.running(
            words,
            env={
                "PYTHONPATH": tree.PYTHONPATH,
                "HOME": str(site.directory / "home"),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            **popen,
        ) as process,
    ):
        yield Service(site, process, log)


@contextlib.contextmanager
def running(site: cli.Site, *options: str, **how: Any) -> Iterator[Service]:
    """Run a service that answers; fail if it was left with an error of its own in the log.

    The emulated guests that it has started end as well.
    """
    with started(site, *options, **how) as service, emulated_ended(site):
        await_answer(service)
        yield service
        assert "Traceback (most recent call last)" not in service.logged(), service.logged()


@contextlib.contextmanager
def emulated_ended(site: cli.Site) -> Iterator[None]:
    """End the emulated guests of a site, which outlive whoever started them, at the end."""
    try:
        yield
    finally:
        for pid, command in processes.strays().items():
            if str(site.state) in command and " emulate " in command:
                processes.end(pid)


def await_answer(service: Service) -> None:
    """Wait until the service answers; fail with its log if it ends instead."""

    def answers() -> bool:
        assert service.process.poll() is None, service.logged()
        try:
            return request(service.site.socket, "GET", "/v1/health").status == 200
        except (OSError, http.client.HTTPException):
            return False

    wait.until(answers, what="answer of the service")


@contextlib.contextmanager
def reachable_site() -> Iterator[cli.Site]:
    """Yield a site whose directory other users may enter, as a temporary one of pytest is not."""
    with tempfile.TemporaryDirectory(prefix="mapsave-") as directory:
        Path(directory).chmod(0o755)
        yield cli.Site(Path(directory) / "site")


def as_user(uid: int, gid: int, groups: list[int]) -> list[str]:
    """Return the beginning of a command that runs as another user, for the tests of roles.

    It may read what others may not read as well: the interpreter may lie in somebody's home. It may
    not write there, which connecting to a socket counts as (unix(7)).
    """
    more = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    reads = "+dac_read_search"
    return [
        *("setpriv", f"--reuid={uid}", f"--regid={gid}", more),
        *(f"--inh-caps={reads}", f"--ambient-caps={reads}", "--"),
    ]
