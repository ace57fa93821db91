"""Hosts of a simulated fleet: the agents' own code, each beside a model of a service.

``python -m tests.bench.fleet_hosts PLAN`` runs those that the file PLAN names, in one process,
until SIGTERM, and writes what they have done to PLAN.done. Only the services are a model: they do
nothing, and a save takes as long as ``plan/cost.py`` predicts, faster by a factor.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mapsave import errors, units
from mapsave.client.exchange import Answer
from mapsave.database_settings import Database
from mapsave.fleet import agent, database, waiting
from mapsave.fleet.local_service import WAIT, Inventory, LocalService, ServiceAway
from mapsave.fleet.notes import Note
from mapsave.history.states import ENDED, State
from mapsave.plan import cost, probe
from mapsave.plan.cost import Way
from mapsave.strict_json import Facts

from tests.kit import layouts

GIB = 1 << 30
_SIZES = (2, 4, 8, 16, 32)  # GiB of RAM of guests
_WAY = Way(direct_io=True, zero_pages="multifd", channels=4, preallocate=False)
_DOWN = (3.0, 8.0)  # seconds that a host that has died is down
_FLEET = logging.getLogger("mapsave.fleet")


def predicted(guest: int) -> float:
    """Return the seconds that a save of that guest takes, by its number."""
    layout = layouts.half_zero((16, 64)[guest % 2])
    pages = _SIZES[guest % len(_SIZES)] * GIB // 4096
    return cost.predict(dataclasses.replace(layout, pages=pages), probe.TYPICAL, _WAY).seconds


@dataclasses.dataclass
class Save:
    """An operation of the model."""

    id: str
    guest: str
    state: State
    began: float
    until: float
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def answer(self) -> Answer:
        is_over = self.state in ENDED
        error = errors.Interrupted("the host died").as_dict()
        return {
            "id": self.id,
            "kind": "save",
            "state": self.state,
            "guest": self.guest,
            "created": units.timestamp(self.began),
            "started": units.timestamp(self.began),
            "ended": units.timestamp(self.until) if is_over else None,
            "progress": None,
            "step": "migrate",
            "error": error if self.state == State.CANCELLED else None,
            "result": {"image": f"/images/{self.guest}"} if self.state == State.DONE else None,
        }


class Model(LocalService):
    """The service of a host that is not there; ``faster`` is how much faster its saves are."""

    def __init__(self, guests: list[str], faster: float) -> None:
        self._guests = guests
        self._faster = faster
        self.saves: dict[str, Save] = {}
        self.is_down = False
        self.busy = asyncio.Event()

    def _check(self) -> None:
        if self.is_down:
            raise ServiceAway("the host is down")

    async def find(self, operation: str) -> Answer | None:
        self._check()
        found = self.saves.get(operation)
        return None if found is None else found.answer()

    async def later(self, operation: str) -> Answer | None:
        self._check()
        await waiting.is_set_within(self.saves[operation].over, WAIT)
        return await self.find(operation)

    async def begin(self, operation: str, body: Facts) -> Answer:
        self._check()
        if operation not in self.saves:
            guest, now = str(body["guest"]), time.time()
            seconds = predicted(int(guest.removeprefix("guest"))) / self._faster
            save = Save(operation, guest, State.RUNNING, now, now + seconds)
            self.saves[operation] = save
            self.busy.set()
            asyncio.get_running_loop().call_later(seconds, self._end, save, State.DONE)
        return self.saves[operation].answer()

    def _end(self, save: Save, state: State) -> None:
        if save.state not in ENDED:
            save.state, save.until = state, time.time()
            save.over.set()

    def die(self) -> None:
        """Lose what runs, as a host does that has lost its power."""
        self.is_down = True
        for each in self.saves.values():
            self._end(each, State.CANCELLED)

    async def cancel(self, operation: str) -> None:
        self._end(self.saves[operation], State.CANCELLED)

    async def marker(self) -> str:
        self._check()
        return next(reversed(self.saves), "")

    async def is_whole_since(self, note: Note) -> bool:
        self._check()
        return note.marker == "" or note.marker in self.saves

    async def steps(self, operation: str) -> list[Facts]:
        return []

    async def health(self) -> Facts:
        self._check()
        return {"status": "ok", "version": "0.1.0", "problems": [], "operations": 0}

    async def inventory(self) -> Inventory:
        self._check()
        guest = {"kind": "qmp", "policy": None, "priority": 0, "launch": True, "state": "running"}
        saved = [each.guest for each in self.saves.values() if each.state == State.DONE]
        image = {"state": "saved", "pinned": False, "note": None, "format": "native"}
        return Inventory(
            {name: {**guest, "error": None, "last_image": None} for name in self._guests},
            {name: {**image, "guest": name, "file_bytes": GIB} for name in saved},
        )


async def live(plan: dict[str, Any], host: dict[str, Any], done: list[dict[str, Any]]) -> None:
    """Run the agent of a host, and let the host die once, if that is planned."""
    model = Model([f"guest{number:02}" for number in range(plan["guests"])], plan["faster"])
    settings = Database(dsn=host["dsn"])
    state = Path(plan["state"]) / host["name"]
    place = agent.Place(
        host["name"],
        functools.partial(database.connect, settings, agent.purpose(state)),
        model,
        state,
    )
    await asyncio.sleep(random.uniform(0, plan["over"]))
    try:
        if host["dies"]:
            running = asyncio.create_task(agent.run(place))
            await model.busy.wait()  # it dies with saves under way
            await asyncio.sleep(random.uniform(0, 0.2))
            model.die()
            running.cancel()
            await asyncio.wait({running})
            await asyncio.sleep(random.uniform(*_DOWN))
            model.is_down = False
        await agent.run(place)
    finally:
        done += [
            {"host": host["name"], "target": host["target"], "guest": each.guest, "id": each.id}
            | {"began": each.began, "until": each.until, "state": each.state}
            for each in model.saves.values()
        ]


async def run(path: Path) -> None:
    """Run the hosts of a plan until SIGTERM."""
    plan = json.loads(path.read_text())
    done: list[dict[str, Any]] = []
    living = asyncio.gather(*(live(plan, host, done) for host in plan["hosts"]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, living.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await living
    await asyncio.sleep(0.2)  # the others are told of the end as well
    path.with_suffix(".done").write_text(json.dumps(done))


if __name__ == "__main__":
    _FLEET.setLevel(logging.ERROR)
    asyncio.run(run(Path(sys.argv[1])))
