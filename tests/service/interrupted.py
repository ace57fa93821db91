"""A service killed at a step of an operation, and what the next one makes of it."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults import struck
from tests.kit import cli, service, wait
from tests.kit.service import Service

NAME = "web01"
IMAGE = "one.mapsave"


@contextmanager
def until_killed(
    site: cli.Site, where: str, step: str, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """Have a service do what a command asks, and die of it; the command still waits then."""
    with service.started(site, command=struck.killer(where, step)) as doomed:
        service.await_answer(doomed)
        with site.start(*arguments, "--json") as waiting:
            assert doomed.process.wait(wait.LONG) == -signal.SIGKILL, doomed.logged()
            assert waiting.poll() is None, waiting.communicate()
            yield waiting


@contextmanager
def survived(
    site: cli.Site, where: str, step: str, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], Service]]:
    """Run a second service after one that was killed; the command of the first still waits."""
    with until_killed(site, where, step, *arguments) as waiting, service.running(site) as mapsaved:
        yield waiting, mapsaved


def outcome(waiting: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Return exit code and output of a command that has found its operation again."""
    done = cli.ended(waiting)
    return done.returncode, done.json()


def await_recovery(mapsaved: Service) -> None:
    """Wait until nothing is left to recover."""
    mapsaved.await_recovery()


def the_only(mapsaved: Service, **wanted: str) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in wanted.items())
    (found,) = mapsaved.get(f"/v1/operations?{query}")["operations"]
    assert isinstance(found, dict)
    return found


def assert_undone(operation: dict[str, Any], words: str) -> None:
    """Fail unless the operation was cancelled, and says what was done about it."""
    assert operation["state"] == "cancelled", operation
    assert operation["error"]["id"] == "interrupted"
    assert words in operation["error"]["message"]
    assert operation["ended"] is not None


def nothing_left(mapsaved: Service) -> None:
    """Fail where something is left to recover or to sweep."""
    assert not struck.journals(mapsaved.site)
    assert not struck.partials(mapsaved.site)
    again = mapsaved.done(kind="recover")
    assert (again["operations"], again["swept"]) == ([], [])
