"""A scheduler within the test, and hosts that do what the test says: by the agents' own functions.

async with leading(fleet, "jobs: ...") as lead:
    await lead.tick()
"""

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsave import yaml_file
from mapsave.database_settings import Database
from mapsave.fleet import answering, clock, database, in_force, orders, settings, tidying
from mapsave.fleet import leading as terms
from mapsave.fleet.database import Connection
from mapsave.fleet.leading import Term
from mapsave.fleet.orders import Made, Order
from mapsave.fleet.settings import Settings

from tests.kit import fleet as kit
from tests.kit.fleet import Fleet

HOSTS = """\
targets:
  nas1: {saves: 2}
  nas2: {saves: 1, bandwidth: 1G}
hosts:
  rack1-a: {target: nas1, saves: 1}
  "rack1-*": {target: nas1}
  "rack2-*": {target: nas2, saves: 3}
"""


def parsed(fleet: Fleet, text: str) -> Settings:
    """Return the settings of fleet.yaml with this text, and with the database of the test."""
    head = f"database: {{dsn: '{fleet.settings.dsn}'}}\n"
    return settings.of_document(yaml_file.parse((head + text).encode(), Path("fleet.yaml")))


@dataclass
class Lead:
    """The scheduler that leads: its term, and the connection that is the database owner's."""

    term: Term
    connection: Connection
    settings: Settings

    async def run(self, job: str, *, in_window: bool = False) -> Made:
        """Run a job as the owner asks for it."""
        async with self.term.transaction() as connection:
            now = await kit.one(connection, "SELECT clock_timestamp()")
            found = self.settings.jobs[job]
            return await orders.run_job(connection, job, found, Order(now), in_window=in_window)

    async def tidy(self) -> None:
        """Look after all that the leader looks after."""
        for each in (
            *(tidying.close_windows, tidying.drop_homeless, tidying.settle_lost),
            *(tidying.free_slots, tidying.settle_runs),
        ):
            async with self.term.transaction() as connection:
                await each(connection)

    async def due(self) -> int:
        """Make the runs that are due; return how many."""
        return await clock.run_due(self.term, self.settings)

    async def apply(self) -> int:
        """Bring the settings into the database; return how many rows were changed."""
        return await in_force.apply(self.term, self.settings)

    async def answer(self) -> int:
        """Answer what was asked for; return how many requests that were."""
        return await answering.answer_all(self.term, self.settings)

    async def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query as tuples."""
        found = await kit.all_rows(self.connection, query, *values)
        return [tuple(row.values()) for row in found]

    async def tasks(self) -> list[tuple[Any, ...]]:
        """Return host, guest and state of all tasks, in the order in which they were made."""
        return await self.rows(
            "SELECT t.host, t.guest, j.status::text FROM tasks t "
            "JOIN procrastinate_jobs j ON j.id = t.job_id ORDER BY t.job_id"
        )


@contextlib.asynccontextmanager
async def leading(fleet: Fleet, text: str = HOSTS) -> AsyncIterator[Lead]:
    """Lead, with the settings of ``text`` in force."""
    async with fleet.owner() as connection:
        lead = Lead(await terms.begin_term(connection), connection, parsed(fleet, text))
        await lead.apply()
        yield lead


@dataclass
class Agent:
    """A host's connection, with the rights that its agent has."""

    host: str
    connection: Connection
    worker: int

    async def lists(
        self,
        guests: Iterable[str],
        images: dict[str, dict[str, str]] | None = None,
        state: str = "running",
    ) -> None:
        """Report the guests, all in one state, and the images."""
        found = {name: {"state": state} for name in guests}
        values = json.dumps(found), json.dumps(images or {})
        await self.connection.execute("SELECT agent_lists(%s, %s)", values)
        await self.connection.execute("SELECT agent_says('1', '{}')")

    async def fetch(self) -> dict[str, Any] | None:
        """Take the next task of the queue; return its arguments."""
        found = await kit.all_rows(
            self.connection,
            "SELECT args FROM procrastinate_fetch_job_v2(ARRAY[%s]::varchar[], %s)",
            self.host,
            self.worker,
        )
        args: dict[str, Any] | None = found[0]["args"]
        return args

    async def slot(self, task: str) -> str:
        """Ask for a slot; return the state that is answered."""
        return str(await kit.one(self.connection, "SELECT state FROM take_slot(%s)", task))

    async def report(self, task: str, status: str = "succeeded", **outcome: Any) -> bool:
        """Report how a task came out; return whether that was news."""
        query = "SELECT report(%s, %s, %s)"
        return bool(await kit.one(self.connection, query, task, status, json.dumps(outcome)))

    async def work(self, status: str = "succeeded", **outcome: Any) -> dict[str, Any]:
        """Take a task with its slot and report its outcome; return its arguments."""
        args = await self.fetch()
        assert args is not None
        assert await self.slot(args["task"]) == "taken"
        assert await self.report(args["task"], status, **outcome)
        return args


@contextlib.asynccontextmanager
async def agent(host: str, how: Database) -> AsyncIterator[Agent]:
    """Connect as the agent of a host."""
    async with database.connected(how, "agent") as connection:
        worker = await kit.one(
            connection, "SELECT worker_id FROM procrastinate_register_worker_v1()"
        )
        yield Agent(host, connection, int(worker))


@contextlib.asynccontextmanager
async def agents(fleet: Fleet, *hosts: str) -> AsyncIterator[dict[str, Agent]]:
    """Add hosts, and connect as the agent of each; each has the guests web01, web02 and db01."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for host in hosts:
            how = await fleet.add_host(host)
            found[host] = await stack.enter_async_context(agent(host, how))
            await found[host].lists(["web01", "web02", "db01"])
        yield found
