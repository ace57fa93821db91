"""Hosts of a fleet, all on this machine: a real service each, emulated guests, and the agent."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsave.database_settings import Database
from mapsave.fleet.database import Connection

from tests.kit import cli, emulated, processes, service, tree, wait
from tests.kit import fleet as kit
from tests.kit.fleet import Task

LIMIT = 600  # seconds that an operation may take; more than any machine needs


@dataclass
class Agent:
    """An agent that runs, or ran."""

    process: subprocess.Popen[str]
    log: Path

    def logged(self) -> str:
        return self.log.read_text()

    def await_log(self, words: str) -> None:
        wait.until(lambda: words in self._alive(), what=f"{words!r} in the agent's log")

    def _alive(self) -> str:
        assert self.process.poll() is None, self.logged()
        return self.logged()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(wait.LONG)

    def stop(self) -> int:
        """Stop it by SIGTERM; return its exit code."""
        self.process.terminate()
        return self.process.wait(wait.LONG)


@dataclass
class Host:
    """A host: its site, where its service runs or not."""

    name: str
    site: cli.Site
    running: service.Service | None = field(default=None, repr=False)

    @property
    def mapsaved(self) -> service.Service:
        assert self.running is not None
        return self.running

    @property
    def begun(self) -> Path:
        """The agent's notes of what it has begun."""
        return self.site.state / "fleet" / self.name / "begun"

    def images(self) -> list[str]:
        return sorted(path.name for path in self.site.images.iterdir())

    def operations(self, kind: str = "save") -> list[dict[str, Any]]:
        """Return the operations of that kind that the service has ever begun."""
        found = self.mapsaved.get(f"/v1/operations?limit=1000&kind={kind}")["operations"]
        assert isinstance(found, list)
        return found


async def forgets(found: Host) -> None:
    """Wait until the agent has forgotten all that it had begun: after the report, in a moment."""
    await asyncio.to_thread(
        wait.until, lambda: not list(found.begun.iterdir()), what="the notes removed"
    )


@contextlib.contextmanager
def host(directory: Path, name: str, database: Database, **settings: Any) -> Iterator[Host]:
    """Set a host up, without a service; what it starts has ended at the end."""
    site = cli.Site(directory / name)
    where = database.dsn_file or database.dsn
    key = "dsn_file" if database.dsn_file is not None else "dsn"
    site.settings = {"fleet": {"host": name, key: str(where)}, **settings}
    site.write()
    yield Host(name, site)


@contextlib.contextmanager
def serving(found: Host, *guests: str, throttle: str | None = None) -> Iterator[Host]:
    """Run guests and the service of a host."""
    with contextlib.ExitStack() as stack:
        for name in guests:
            stack.enter_context(emulated.guest(found.site, name, throttle=throttle))
        found.running = stack.enter_context(service.running(found.site))
        found.running.await_recovery()
        yield found


@contextlib.contextmanager
def agent(
    found: Host, *under: str, code: str | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Agent]:
    """Run the agent of a host; ``code`` is Python that is run before it."""
    log = found.site.directory / "agent.log"
    words = list(cli.COMMAND)
    if code is not None:
        run = f"import sys\n{code}\nfrom mapsave.cli import start\nstart.command()"
        words = [words[0], "-c", run]
    command = [*under, *words, "--config", str(found.site.config), "fleet", "agent"]
    with (
        log.open("a") as output,
        processes.running(
            command,
            env={"PYTHONPATH": tree.PYTHONPATH, "HOME": str(found.site.directory), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        ) as process,
    ):
        yield Agent(process, log)
        assert "Traceback" not in log.read_text(), log.read_text()


def save(guest: str, **options: Any) -> dict[str, Any]:
    """Return the body of a request to save a guest, which runs on."""
    return {"kind": "save", "guest": guest, "save": {"then": "resume", **options}}


async def add(owner: Connection, found: Host, request: object, **more: Any) -> Task:
    """Queue a task for a host, as a scheduler does; ``more`` as Task has it."""
    made = Task(found.name, limit_s=LIMIT, **more)
    target = made.target
    made.args = {"task": str(made.uuid), "request": request, "limit_s": LIMIT, "target": target}
    await kit.add_task(owner, made)
    return made


async def becomes(owner: Connection, task: Task, *wanted: str) -> str:
    """Wait until the status of a task is one of those; return it."""
    deadline = time.monotonic() + wait.LONG
    while (status := await kit.status(owner, task.uuid)) not in wanted:
        assert time.monotonic() < deadline, f"not {wanted}, but {status}"
        await asyncio.sleep(0.02)
    return status


async def settled(owner: Connection, task: Task) -> tuple[str, dict[str, Any]]:
    """Wait for the end of a task; return its status and its outcome."""
    status = await becomes(owner, task, "succeeded", "failed", "aborted", "cancelled")
    return status, await kit.one(owner, "SELECT outcome FROM tasks WHERE uuid = %s", task.uuid)


async def until(owner: Connection, query: str, *values: object) -> Any:
    """Wait until the one column of the one row of a query is true; return it."""
    deadline = time.monotonic() + wait.LONG
    while not (found := await kit.one(owner, query, *values)):
        assert time.monotonic() < deadline, query
        await asyncio.sleep(0.02)
    return found


async def cancel(owner: Connection, task: Task) -> None:
    """Cancel a task, as a scheduler does."""
    await kit.one(
        owner,
        "SELECT procrastinate_cancel_job_v1(job_id, true, false) FROM tasks WHERE uuid = %s",
        task.uuid,
    )
