"""A fleet, simulated on one machine: ``python -m tests.bench fleet [--hosts N,…] [--guests N]``.

PostgreSQL, Procrastinate, the scheduler, the commands and the agents' code are the real ones; the
service of each host is a model (``fleet_hosts``). A nightly run saves every guest, under the
budgets of storage targets; 2 % of the hosts die in the meantime. It fails unless all tasks were
settled, no guest was saved twice, and no target had more saves at once than its budget.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapsave.database_settings import Database
from mapsave.fleet import database, schema
from mapsave.fleet.database import Connection

from tests.bench import fleet_hosts, table
from tests.kit import fleet as kit
from tests.kit import postgres, processes, tree, wait

_PROCESSES = 4  # that the agents are in
_SAVES = 4  # at once, to a storage target
_TARGETS = 40  # for 1,000 hosts
_DYING = 0.02
_LONGEST = 3600.0  # seconds that a run may take
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the fleet is."""

    hosts: int
    guests: int
    faster: float

    @property
    def targets(self) -> int:
        return max(_TARGETS * self.hosts // 1000, 1)

    @property
    def tasks(self) -> int:
        return self.hosts * self.guests


@dataclasses.dataclass
class Figures:
    """What was measured, in seconds and bytes."""

    size: Size
    connected: float = 0.0
    scheduled: float = 0.0
    settled: float = 0.0
    ps: float = 0.0
    ps_cpu: float = 0.0
    server_cpu: float = 0.0
    agents_cpu: float = 0.0
    database_bytes: int = 0
    connections: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)

    def cells(self) -> list[str]:
        per_second = self.size.tasks / self.settled
        return [
            *(f"{self.size.hosts}", f"{self.size.tasks}", f"{self.size.targets}"),
            *(f"{self.connected:.0f} s", f"{self.scheduled:.1f} s", f"{self.settled:.0f} s"),
            *(f"{per_second:.0f}", f"{1000 * self.server_cpu / self.size.tasks:.1f} ms"),
            f"{1000 * self.agents_cpu / self.size.tasks:.1f} ms",
            *(f"{self.database_bytes / (1 << 20):.0f} MiB", f"{self.connections}"),
            *(f"{self.ps:.2f} s", f"{self.ps_cpu:.2f} s"),
        ]


HEAD = [
    *("hosts", "tasks", "targets", "connect", "schedule", "settle", "tasks/s", "server CPU/task"),
    *("agents CPU/task", "database", "connections", "fleet ps"),
    "CPU of that",
]


def name(number: int, size: Size) -> str:
    return f"t{number % size.targets:02}-h{number:04}"


def write_fleet(path: Path, dsn: str, size: Size) -> None:
    """Write fleet.yaml (JSON is YAML)."""
    targets = [f"t{number:02}" for number in range(size.targets)]
    content = {
        "database": {"dsn": dsn},
        "targets": {each: {"saves": _SAVES} for each in targets},
        "hosts": {f"{each}-*": {"target": each, "saves": 2} for each in targets},
        "jobs": {"nightly": {"guests": ["*@*"], "save": {"then": "resume"}}},
    }
    path.write_text(json.dumps(content))


def cpu(pids: list[int]) -> float:
    """Return the seconds of CPU that processes have taken, and their children that have ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # utime to cstime, proc(5)
    return total / _TICKS


def family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@contextlib.contextmanager
def hosts(directory: Path, cluster: postgres.Cluster, size: Size) -> Iterator[list[int]]:
    """Run the hosts in a few processes; yield their pids."""
    dying = set(random.sample(range(size.hosts), max(round(size.hosts * _DYING), 1)))
    with contextlib.ExitStack() as stack:
        running = []
        for part in range(_PROCESSES):
            plan = directory / f"hosts{part}.json"
            names = [(number, name(number, size)) for number in range(part, size.hosts, _PROCESSES)]
            content = {
                "guests": size.guests,
                "faster": size.faster,
                "over": size.hosts / 50,
                "state": str(directory / "state"),
                "hosts": [
                    {
                        "name": host,
                        "target": host.partition("-")[0],
                        "dsn": cluster.dsn("fleet", f"fleet_host_{host}"),
                        "dies": number in dying,
                    }
                    for number, host in names
                ],
            }
            plan.write_text(json.dumps(content))
            words = [sys.executable, "-m", "tests.bench.fleet_hosts", str(plan)]
            path = {"PYTHONPATH": f"{tree.PYTHONPATH}{os.pathsep}{tree.ROOT}"}
            running.append(stack.enter_context(processes.running(words, env=path)))
        yield [each.pid for each in running]
        for each in running:
            each.send_signal(signal.SIGTERM)
        for each in running:
            assert each.wait(wait.LONG) == 0


def command(directory: Path, *words: str) -> tuple[Any, float]:
    """Run a command of ``mapsave fleet``; return what it prints, and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mapsave", "fleet", *words, "--json"],
        env=processes.environment(
            {"PYTHONPATH": tree.PYTHONPATH, "MAPSAVE_FLEET": str(directory / "fleet.yaml")}
        ),
        capture_output=True,
        text=True,
        timeout=_LONGEST,
        check=False,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), seconds


async def until(connection: Connection, query: str, wanted: int) -> float:
    """Wait until a query returns a number; return the seconds that it took."""
    started = time.monotonic()
    while (found := await kit.one(connection, query)) != wanted:
        assert time.monotonic() - started < _LONGEST, (query, found)
        await asyncio.sleep(0.25)
    return time.monotonic() - started


async def measure(directory: Path, cluster: postgres.Cluster, size: Size) -> Figures:
    """Run a fleet of that size to the end of its nightly run."""
    found = Figures(size)
    settings = Database(dsn=cluster.dsn("fleet"))
    cluster.sql(f"CREATE DATABASE fleet OWNER {postgres.OWNER}")
    await schema.init(settings)
    for number in range(size.hosts):
        await schema.add_host(settings, name(number, size), 2)
    # Without passwords: how they are checked is not what is measured.
    cluster.trust_all()
    write_fleet(directory / "fleet.yaml", cluster.dsn("fleet"), size)
    words = [sys.executable, "-m", "mapsave", "fleet", "scheduler"]
    env = {"PYTHONPATH": tree.PYTHONPATH, "MAPSAVE_FLEET": str(directory / "fleet.yaml")}
    with (
        (directory / "scheduler.log").open("w") as log,
        processes.running(words, env=env, stdout=log, stderr=log),
        hosts(directory, cluster, size) as pids,
    ):
        async with database.connected(settings, "bench") as connection:
            found.connected = await until(
                connection, "SELECT count(*) FROM guests", size.hosts * size.guests
            )
            before, agents = cpu(family(cluster.pid)), cpu(pids)
            asked, found.scheduled = await asyncio.to_thread(command, directory, "run", "nightly")
            print(f"scheduled: {asked}", flush=True)
            open_tasks = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
            started = time.monotonic()
            settling = asyncio.create_task(until(connection, open_tasks, 0))
            while not settling.done():
                taken = resource.getrusage(resource.RUSAGE_CHILDREN)
                _, seconds = await asyncio.to_thread(command, directory, "ps")
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                found.ps = max(found.ps, seconds)
                cpu_of_it = after.ru_utime + after.ru_stime - taken.ru_utime - taken.ru_stime
                found.ps_cpu = max(found.ps_cpu, cpu_of_it)
                await asyncio.wait({settling}, timeout=5)
            found.settled = time.monotonic() - started + found.scheduled
            found.server_cpu = cpu(family(cluster.pid)) - before
            found.agents_cpu = cpu(pids) - agents
            await settling
            query = "SELECT pg_database_size(current_database())"
            found.database_bytes = int(await kit.one(connection, query))
            found.connections = int(await kit.one(connection, _SESSIONS))
            query = "SELECT status::text, count(*) AS n FROM procrastinate_jobs GROUP BY status"
            rows = await kit.all_rows(connection, query)
            found.outcomes = Counter({row["status"]: row["n"] for row in rows})
            assert await kit.one(connection, "SELECT count(*) FROM slots") == 0
    check(directory, found)
    return found


def check(directory: Path, found: Figures) -> None:
    """Fail where a guest was saved twice, or a target had more saves at once than its budget."""
    saves = [
        each for path in directory.glob("hosts*.done") for each in json.loads(path.read_text())
    ]
    assert sum(found.outcomes.values()) == found.size.tasks, found.outcomes
    assert set(found.outcomes) <= {"succeeded", "failed"}, found.outcomes
    several = Counter((each["host"], each["guest"]) for each in saves)
    assert len(saves) == len(several) == found.size.tasks, "a guest was saved twice, or not at all"
    states = Counter(each["state"] for each in saves)
    assert states["done"] == found.outcomes["succeeded"], (states, found.outcomes)
    for target in {each["target"] for each in saves}:
        here = [each for each in saves if each["target"] == target]
        moments = [(each["began"], 1) for each in here] + [(each["until"], -1) for each in here]
        most = now = 0
        for _, change in sorted(moments):
            now += change
            most = max(most, now)
        assert most <= _SAVES, f"{target}: {most} saves at once"
    real = sum(each["until"] - each["began"] for each in saves) * found.size.faster
    hours = real / _SAVES / found.size.targets / 3600
    print(
        f"{dict(found.outcomes)}; none twice, no target above {_SAVES} saves; at full speed of the "
        f"storage the run takes {hours:.1f} h",
        flush=True,
    )


def main(arguments: list[str]) -> int:
    """Measure fleets of the sizes that were asked for, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench fleet", description=__doc__)
    parser.add_argument("--hosts", default="100,300,1000", help="sizes: N,… (100,300,1000)")
    parser.add_argument("--guests", type=int, default=20, help="guests of each host")
    parser.add_argument(
        "--faster", type=float, default=100.0, help="how much faster saves are than predicted"
    )
    given = parser.parse_args(arguments)
    if (reason := postgres.unavailable()) is not None:
        parser.error(reason)
    print(table.machine())
    rows = []
    for count in map(int, given.hosts.split(",")):
        size = Size(count, given.guests, given.faster)
        settings = {
            "max_connections": str(count + 60),
            "shared_buffers": "'256MB'",
            "autovacuum": "on",
        }
        with (
            tempfile.TemporaryDirectory(prefix="mapsave-bench-") as directory,
            postgres.running(durable=True, settings=settings) as cluster,
        ):
            rows.append(asyncio.run(measure(Path(directory), cluster, size)).cells())
        print("| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", sep="\n")
        for row in rows:
            print("| " + " | ".join(row) + " |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}; mean save {mean(given.faster):.2f} s")
    return 0


def mean(faster: float) -> float:
    seconds = [fleet_hosts.predicted(guest) / faster for guest in range(20)]
    return sum(seconds) / len(seconds)
