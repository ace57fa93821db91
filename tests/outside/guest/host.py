"""What an operator of this host does, by its own commands alone."""

import base64
import http.client
import json
import os
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.kit import emulated, service, wait

SOCKET = Path("/run/mapsave/mapsave.sock")
CONFIGURATION = Path("/etc/mapsave/manager.yaml")
JOBS = Path("/etc/mapsave/jobs.d")
NOTES = Path("/var/lib/notes.json")  # of the first boot, for the second
GUESTS = ("web01", "db01")
JOB = "nightly"
# Who is in which group, and so has which role.
OPERATOR, READER, STRANGER = "olivia", "rupert", "sam"
GROUPS = {OPERATOR: ["mapsave"], READER: ["monitoring"], STRANGER: []}


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return the one JSON object that it printed."""
        return json.loads(self.stdout)


def run(*command: str | Path, user: str | None = None, code: int = 0) -> Done:
    """Run a command as root, or another user with all its groups; fail for another exit code."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    home = {"HOME": f"/home/{user}", "USER": user} if user else {"HOME": "/root"}
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **home}
    done = subprocess.run(
        [*become, *command], env=env, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == code, (command, done)
    return Done(done.returncode, done.stdout, done.stderr)


class Cockpit:
    """A user who has logged in to Cockpit by a password, which is set for that.

    With ``administrates`` access as root is asked for at the login, as Cockpit's own page does.
    """

    def __init__(self, user: str, *, administrates: bool = False) -> None:
        password = f"of {user}"
        secret = run("openssl", "passwd", "-6", password).stdout.strip()
        run("usermod", f"--password={secret}", user)
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        more = {"X-Superuser": "any"} if administrates else {}
        answer = self._answer("/cockpit/login", Authorization=f"Basic {word}", **more)
        self._token = json.loads(answer.read())["csrf-token"]
        self._cookie = str(answer.headers["Set-Cookie"]).partition(";")[0]

    def get(self, path: str) -> str:
        """Return a file of a package of Cockpit, or what a channel says."""
        return self._answer(path, Cookie=self._cookie).read().decode()

    def ask_service(self, path: str) -> str:
        """Return mapsave's answer to what the page would ask, by the same channel of Cockpit."""
        wanted = {"payload": "http-stream2", "unix": str(SOCKET), "method": "GET", "path": path}
        wanted["superuser"] = "try"
        query = base64.b64encode(json.dumps(wanted).encode()).decode()
        return self.get(f"/cockpit/channel/{self._token}?{query}")

    def _answer(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", 9090, timeout=300)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status in (200, 403), (path, answer.status, answer.read())
        return answer


def is_active(unit: str) -> bool:
    return shown(unit, "ActiveState") == "active"


def shown(unit: str, name: str) -> str:
    """Return a property of a unit, as systemd knows it now."""
    return run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def start(guest: str) -> list[str]:
    """Return what starts an emulated guest as a unit of its own, as docs/systemd.md has it."""
    return [
        *("systemd-run", "--quiet", "--collect", f"--unit=guest-{guest}"),
        *("--property=Before=mapsave-save-all.service", "--"),
        *("mapsave", "emulate", "--qmp", str(monitor(guest)), "--memory", "4M", "--name", guest),
    ]


def monitor(guest: str) -> Path:
    return Path("/run/guests") / f"{guest}.qmp"


def digest(guest: str) -> str:
    """Return the digest of a guest's RAM."""
    copy = Path("/run/ram")
    found = emulated.ram_of(monitor(guest), copy)
    copy.unlink()
    return found


def operations(**wanted: str) -> list[dict[str, Any]]:
    """Return the operations of the service, oldest first; their times are seconds since the epoch.

    It starts if it does not run.
    """
    query = "&".join(f"{name}={value}" for name, value in wanted.items())
    answer = service.request(SOCKET, "GET", f"/v1/operations?{query}")
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = list(reversed(answer.json()["operations"]))
    for each in found:
        for name in ("created", "started", "ended"):
            if each[name] is not None:
                each[name] = datetime.fromisoformat(each[name]).timestamp()
    return found


def await_operation(*, kind: str, after: float = 0) -> dict[str, Any]:
    """Wait for an operation that began after a time, in seconds since the epoch, and has ended."""

    def ended() -> dict[str, Any] | None:
        found = [each for each in operations(kind=kind) if each["ended"]]
        found = [each for each in found if each["created"] > after]
        if not found:
            time.sleep(0.5)  # it gets the processor
        return found[-1] if found else None

    return wait.until(ended, timeout=300, what=f"an operation {kind}")
