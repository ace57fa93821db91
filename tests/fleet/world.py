"""A whole fleet on this machine, each of whose parts can be killed or cut off, and comes back.

Hosts with a service, an agent and two guests each, a scheduler, and a PostgreSQL. All connections
to the database go through sockets that can be cut. What the storage sees is sampled all the time.
"""

import asyncio
import contextlib
import dataclasses
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import psycopg
from mapsave.database_settings import Database
from psycopg.rows import dict_row

from tests.fleet import hosts as kit_hosts
from tests.fleet.hosts import Agent, Host
from tests.kit import cli, emulated, postgres, processes, service, socket_proxy, tree, wait
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet

NAME = "fleet"
GUESTS = ("web01", "db01")
SAVES = 2  # at once, of all hosts, to their one target
THROTTLE = "8M"  # bytes per second of a guest of 8 MiB
_SAMPLE = 0.004  # seconds
_SOCKET = f".s.PGSQL.{postgres.PORT}"


class Killable(Protocol):
    def kill(self) -> None: ...


P = TypeVar("P", bound=Killable)


class Part(Generic[P]):
    """A process that is started again after it was killed."""

    def __init__(self, start: Callable[[], AbstractContextManager[P]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._running: P | None = None

    @property
    def running(self) -> P:
        assert self._running is not None
        return self._running

    def start(self) -> None:
        self._running = self._stack.enter_context(self._start())

    def restart(self) -> None:
        """Start it again, where it was killed before."""
        self.close()
        self.start()

    def close(self) -> None:
        self._stack.close()


@dataclass
class Scheduler:
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(wait.LONG)


class Storage:
    """Counts the images that are being written, every few milliseconds, from the storage's side."""

    def __init__(self, directories: list[Path]) -> None:
        self._directories = directories
        self.most = 0
        self.samples = 0

    def now(self) -> int:
        """Return how many images are being written."""
        return sum(len(list(each.glob("*.partial"))) for each in self._directories)

    @contextlib.contextmanager
    def sampled(self) -> Iterator[None]:
        """Sample until the end."""
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(_SAMPLE):
                # One after another: an image may move from one count to none in between, never on.
                self.most = max(self.most, self.now())
                self.samples += 1

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@dataclass
class Node:
    """A host: what it has, and its way to the database."""

    host: Host
    proxy: socket_proxy.Proxy
    mapsaved: Part[service.Service]
    agent: Part[Agent]


@dataclass
class World:
    """What runs; ``observe`` sees the database by a way that is never cut."""

    directory: Path
    cluster: postgres.Cluster
    clusters: ExitStack
    nodes: list[Node]
    scheduler: Part[Scheduler]
    scheduler_proxy: socket_proxy.Proxy
    storage: Storage
    copies: list[tuple[ExitStack, postgres.Cluster]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def proxies(self) -> list[socket_proxy.Proxy]:
        return [self.scheduler_proxy, *(node.proxy for node in self.nodes)]

    def observe(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return the rows of a query of the database's owner. Raises psycopg.Error."""
        dsn = f"{self.cluster.dsn(NAME)} options='-c search_path=fleet'"
        with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(query, values or None).fetchall()  # type: ignore[call-overload,no-any-return]

    def ask(self) -> int:
        """Ask for a run of the job; return the number of the request."""
        query = "INSERT INTO requests (kind, what) VALUES ('run', %s) RETURNING id"
        return int(self.observe(query, '{"job": "nightly"}')[0]["id"])

    def answer(self, request: int) -> dict[str, Any] | None:
        """Return the answer to a request; None where there is none yet, or no such request."""
        rows = self.observe("SELECT answer FROM requests WHERE id = %s", request)
        answer = rows[0]["answer"] if rows else None
        assert answer is None or "run" in answer, answer
        return answer  # type: ignore[no-any-return]

    def tasks(self, run: int) -> list[dict[str, Any]]:
        """Return host, guest, operation, status and outcome of the tasks of a run."""
        return self.observe(
            "SELECT t.host, t.guest, t.operation, j.status::text, t.outcome FROM tasks t"
            " JOIN procrastinate_jobs j ON j.id = t.job_id WHERE t.run = %s",
            run,
        )

    def images(self) -> list[Path]:
        """Return the images that are committed, on all hosts."""
        found = [path for node in self.nodes for path in node.host.site.images.iterdir()]
        return [path for path in found if not path.name.endswith(".partial")]

    def copy(self) -> None:
        """Take a copy of the database, to which ``fail_over`` goes."""
        stack = ExitStack()
        self.copies.append((stack, stack.enter_context(postgres.copied(self.cluster))))

    def fail_over(self) -> None:
        """Lose the database, and have the copy of before take over."""
        self.cluster.stop(signal.SIGKILL)
        old = self.clusters
        (self.clusters, self.cluster) = self.copies.pop()
        self.cluster.start()
        for proxy in self.proxies:
            proxy.target = self.cluster.directory / _SOCKET
        old.close()


@contextlib.contextmanager
def running(directory: Path, names: tuple[str, ...]) -> Iterator[World]:
    """Run a fleet of these hosts; everything of it has ended at the end."""
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="msw")))
        clusters = ExitStack()
        cluster = clusters.enter_context(postgres.running(durable=True))
        try:
            fleet = asyncio.run(kit.made(cluster, NAME, directory))
        except BaseException:
            clusters.close()
            raise
        (sockets / "scheduler").mkdir()
        proxy = stack.enter_context(_proxy(sockets / "scheduler", cluster))
        path = _write(directory, sockets / "scheduler")
        found = World(
            directory,
            cluster,
            clusters,
            [],
            Part(lambda: _scheduler(path)),
            proxy,
            Storage([]),
        )
        # What it has become by then.
        stack.callback(lambda: found.clusters.close())
        stack.callback(lambda: [each.close() for each, _ in found.copies])
        for name in names:
            found.nodes.append(stack.enter_context(_node(found, fleet, sockets / name, name)))
        found.storage = Storage([node.host.site.images for node in found.nodes])
        stack.enter_context(found.storage.sampled())
        found.scheduler.start()
        stack.callback(found.scheduler.close)
        count = "SELECT count(*) AS n FROM guests WHERE facts ->> 'state' = 'running'"
        everything = len(names) * len(GUESTS)
        wait.until(lambda: found.observe(count)[0]["n"] == everything, what="the inventory")
        targets = "SELECT count(*) AS n FROM hosts WHERE target = 'nas1'"
        wait.until(lambda: found.observe(targets)[0]["n"] == len(names), what="the settings")
        yield found


@contextlib.contextmanager
def _node(world: World, fleet: Fleet, sockets: Path, name: str) -> Iterator[Node]:
    sockets.mkdir()
    settings = asyncio.run(fleet.add_host(name, saves=0))
    assert settings.dsn_file is not None
    text = settings.dsn_file.read_text()
    settings.dsn_file.write_text(re.sub("host=[^ ]*", f"host={sockets}", text))
    with ExitStack() as stack:
        proxy = stack.enter_context(_proxy(sockets, world.cluster))
        database = Database(dsn_file=settings.dsn_file)
        host = stack.enter_context(kit_hosts.host(world.directory, name, database))
        for guest in GUESTS:
            stack.enter_context(emulated.guest(host.site, guest, throttle=THROTTLE))
        mapsaved = Part(lambda: service.running(host.site))
        agent = Part(lambda: kit_hosts.agent(host))
        for part in (mapsaved, agent):
            part.start()  # type: ignore[attr-defined]
            stack.callback(part.close)  # type: ignore[attr-defined]
        host.running = mapsaved.running
        yield Node(host, proxy, mapsaved, agent)


def _proxy(
    directory: Path, cluster: postgres.Cluster
) -> AbstractContextManager[socket_proxy.Proxy]:
    return socket_proxy.running(directory / _SOCKET, cluster.directory / _SOCKET)


def _write(directory: Path, sockets: Path) -> Path:
    path = directory / "fleet.yaml"
    path.write_text(
        f"database: {{dsn: 'host={sockets} dbname={NAME} user={postgres.OWNER}'}}\n"
        f"targets: {{nas1: {{saves: {SAVES}}}}}\n"
        'hosts: {"*": {target: nas1, saves: 2}}\n'
        'jobs: {nightly: {guests: ["*"], save: {then: resume, image: "{guest}-{uuid}"}}}\n'
    )
    return path


@contextlib.contextmanager
def _scheduler(path: Path) -> Iterator[Scheduler]:
    words = [*cli.COMMAND, "fleet", "scheduler", "--fleet", str(path)]
    log = path.with_name("scheduler.log")
    with (
        log.open("a") as output,
        processes.running(
            words,
            env={"PYTHONPATH": tree.PYTHONPATH},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        ) as process,
    ):
        yield Scheduler(process)
    assert "Traceback" not in log.read_text(), log.read_text()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a part, and how it comes back."""

    begin: Callable[[World], None]
    heal: Callable[[World], None]


def _each(act: Callable[[Node], None]) -> Callable[[World], None]:
    """Return what does it to all hosts but the last one, which goes on undisturbed."""
    return lambda world: [act(node) for node in world.nodes[:-1] or world.nodes] and None


def _restart_mapsaved(node: Node) -> None:
    node.mapsaved.restart()
    node.host.running = node.mapsaved.running


def _cut_all(world: World) -> None:
    for each in world.proxies:
        each.cut()


def _heal_all(world: World) -> None:
    for each in world.proxies:
        each.heal()


FAULTS = {
    "agent": {
        "kill": Fault(
            _each(lambda node: node.agent.running.kill()), _each(lambda node: node.agent.restart())
        ),
        # A network that comes back may have forgotten its connections.
        "cut": Fault(
            _each(lambda node: node.proxy.cut()), _each(lambda node: node.proxy.heal(drop=True))
        ),
    },
    "mapsaved": {
        "kill": Fault(_each(lambda node: node.mapsaved.running.kill()), _each(_restart_mapsaved)),
        "cut": Fault(
            _each(lambda node: node.mapsaved.running.signal(signal.SIGSTOP)),
            _each(lambda node: node.mapsaved.running.signal(signal.SIGCONT)),
        ),
    },
    "scheduler": {
        "kill": Fault(
            lambda world: world.scheduler.running.kill(), lambda world: world.scheduler.restart()
        ),
        "cut": Fault(
            lambda world: world.scheduler_proxy.cut(), lambda world: world.scheduler_proxy.heal()
        ),
    },
    "postgres": {
        "kill": Fault(
            lambda world: world.cluster.stop(signal.SIGKILL), lambda world: world.cluster.start()
        ),
        "cut": Fault(_cut_all, _heal_all),
        "copy": Fault(World.fail_over, lambda _: None),
    },
}


def _first(world: World, query: str) -> bool:
    return bool(world.observe(query)[0]["n"])


# What has just come to be when it goes wrong, in the course of a run.
MOMENTS: dict[str, Callable[[World, int], bool]] = {
    "asked": lambda _world, _request: True,
    "queued": lambda world, request: world.answer(request) is not None,
    "taken": lambda world, _: _first(world, "SELECT count(*) AS n FROM slots"),
    "written": lambda world, _: world.storage.now() > 0,
    "committed": lambda world, _: bool(world.images()),
    "reported": lambda world, _: _first(
        world,
        "SELECT count(*) AS n FROM tasks WHERE ended > clock_timestamp() - interval '5 s'",
    ),
}


@dataclass(frozen=True)
class Case:
    """Two parts that fail at the same moment: ``agent.kill``, ``postgres.copy``."""

    one: str
    other: str
    moment: str
    hold: float = 1.0  # seconds until they come back

    def __str__(self) -> str:
        return f"{self.one}+{self.other} when {self.moment}"

    def faults(self) -> list[Fault]:
        found = []
        for name in (self.one, self.other):
            part, _, kind = name.partition(".")
            found.append(FAULTS[part][kind])
        return found

    @property
    def copies(self) -> bool:
        return "postgres.copy" in (self.one, self.other)

    @property
    def kills_service(self) -> bool:
        return "mapsaved.kill" in (self.one, self.other)


@dataclass
class Result:
    """What came of a case."""

    seconds: float
    statuses: dict[str, int]
    was_lost: bool  # the run: the copy is older than it, and it was asked for again
    most: int  # images that were being written at once


def play(world: World, case: Case) -> Result:
    """Have a run disturbed as the case says, and check what came of it. Raises AssertionError."""
    began = time.monotonic()
    world.storage.most = 0
    # Before the run for the first two: then the copy knows nothing of it.
    is_older = case.copies and case.moment in ("asked", "queued")
    if is_older:
        world.copy()
    request = world.ask()
    if case.copies and not is_older:
        wait.until(lambda: world.answer(request), what="the answer")
        world.copy()
    reached = MOMENTS[case.moment]
    wait.until(lambda: reached(world, request), what=f"{case}: {case.moment}")
    for fault in case.faults():
        fault.begin(world)
    time.sleep(case.hold)
    for fault in case.faults():
        fault.heal(world)
    was_lost = not world.observe("SELECT id FROM requests WHERE id = %s", request)
    if was_lost:
        request = world.ask()
    answer = wait.until(lambda: world.answer(request), what=f"{case}: the answer")
    run = answer["run"]
    assert world.tasks(run), f"{case}: a run without tasks: {answer}"
    try:
        wait.until(lambda: _is_settled(world, run), what="the run's end")
    except AssertionError as error:
        raise AssertionError(f"{case}: {error}: {world.tasks(run)}") from None
    tasks = world.tasks(run)
    _check(world, case, tasks, was_lost=was_lost)
    statuses: dict[str, int] = {}
    for task in tasks:
        statuses[task["status"]] = statuses.get(task["status"], 0) + 1
    return Result(time.monotonic() - began, statuses, was_lost, world.storage.most)


def _is_settled(world: World, run: int) -> bool:
    return all(each["status"] not in ("todo", "doing") for each in world.tasks(run))


def _check(world: World, case: Case, tasks: list[dict[str, Any]], *, was_lost: bool) -> None:
    """Compare what the fleet says with what is on the hosts."""
    wait.until(lambda: world.storage.now() == 0, what=f"{case}: the end of all writing")
    assert world.storage.most <= SAVES, f"{case}: {world.storage.most} images at once"
    of = {task["operation"]: task for task in tasks}
    assert len(of) == len(tasks)
    done = 0
    for node in world.nodes:
        new = [each for each in _ended(node) if each["id"] not in world.seen]
        world.seen |= {each["id"] for each in new}
        done += sum(each["state"] == "done" for each in new)
        for guest in GUESTS:
            ours = [each for each in new if each["guest"] == guest]
            known = [each for each in ours if each["id"] in of]
            # Once; and once more only of a run that the copy did not know of.
            assert len(ours) - len(known) <= was_lost, (str(case), ours)
            mine = [
                each for each in tasks if (each["host"], each["guest"]) == (node.host.name, guest)
            ]
            _compare(case, mine, known, was_lost=was_lost)
            assert emulated.status(emulated.socket_of(node.host.site, guest)) == "running"
    images = world.images()
    assert len(images) == done, (str(case), images, done)
    for image in images:
        image.unlink()
    # That of a run which the copy did not know is given back when its host has reported.
    free = "SELECT count(*) = 0 AS free FROM slots"
    wait.until(lambda: world.observe(free)[0]["free"], what=f"{case}: the slots given back")


def _compare(
    case: Case,
    tasks: list[dict[str, Any]],
    operations: list[dict[str, Any]],
    *,
    was_lost: bool,
) -> None:
    """Compare the tasks of a guest with its operations: as many, and with the same outcome."""
    if was_lost and not tasks:
        return  # it was still being saved for the run that was lost
    (task,) = tasks
    if task["status"] == "succeeded":
        (operation,) = operations
        assert operation["state"] == "done", (str(case), task, operation)
        return
    assert all(each["state"] != "done" for each in operations), (str(case), task, operations)
    # A service that is killed may roll a save back; nothing else is a reason for a failure, but
    # that a guest is still being saved for a run that was lost.
    assert case.kills_service or was_lost, (str(case), task, operations)


def _ended(node: Node) -> list[dict[str, Any]]:
    """Return the saves that a host has ever begun, when all of them have ended."""

    def all_of_them() -> list[dict[str, Any]] | None:
        found = node.host.operations()
        is_over = all(each["state"] in ("done", "failed", "cancelled") for each in found)
        return [*found, {"id": "", "guest": "", "state": ""}] if is_over else None

    return wait.until(all_of_them, what="the end of all operations")


def cases() -> list[Case]:
    """Return each pair of parts, with each way in which both can fail, at each moment."""
    kinds = {part: [f"{part}.{kind}" for kind in faults] for part, faults in FAULTS.items()}
    names = list(kinds)
    return [
        Case(one, other, moment)
        for number, part in enumerate(names)
        for second in names[number + 1 :]
        for one in kinds[part]
        for other in kinds[second]
        for moment in MOMENTS
    ]


def with_hold(case: Case, hold: float) -> Case:
    """Return a case whose parts come back after so many seconds."""
    return dataclasses.replace(case, hold=hold)
