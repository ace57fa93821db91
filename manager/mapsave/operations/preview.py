"""What a save would do: the preflight checks run to the end, and the strategy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypedDict

from mapsave import errors, open_files, shielded
from mapsave.config import Config, Guest
from mapsave.image import store
from mapsave.image.metadata import ProcessPart
from mapsave.monitor import fdset, process
from mapsave.operations import attach, check, facts, learning, metadata, save_request
from mapsave.plan import planner


class Preview(TypedDict):
    """What ``mapsave check GUEST --json`` prints; sizes in bytes."""

    guest: str
    can_save: bool
    uuid: str | None
    process: ProcessPart | None
    run_state: str
    machine: str
    qemu: str
    memory_bytes: int
    resident_bytes: int | None
    image: str
    checks: list[check.Line]
    strategy: dict[str, bool | int | str]
    reasons: dict[str, str]


async def preview(
    guest: Guest, config: Config, request: save_request.Request
) -> tuple[Preview, errors.MapsaveError | None]:
    """Check everything that a save would, touching nothing; return it with the first error.

    Raises Unreachable and its like where there is nothing to check.
    """
    async with open_files.reserved(), attach.attached(guest, config, only_look=True) as session:
        found = await facts.gather(session, config.state)
        with facts.answering():
            await fdset.check_passed(session)
        with save_request.place(guest, config, request) as (held, name):
            preflight = check.Preflight.of(config, found, held, name, request)
            lines, error = check.report(preflight)
            await preflight.learn(config, measures=False)
            chosen = preflight.strategy()
            return {
                "guest": guest.name,
                "can_save": error is None,
                "uuid": found.uuid,
                "process": metadata.process(found),
                "run_state": found.run_state,
                "machine": found.machine,
                "qemu": str(found.version),
                "memory_bytes": found.memory.total,
                "resident_bytes": process.resident_bytes(found.pid) if found.pid else None,
                "image": f"{held.path}/{name}",
                "checks": lines,
                "strategy": chosen.as_dict(),
                "reasons": chosen.reasons,
            }, error


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan, the directory it is for and when that was measured, and how full the RAM is."""

    plan: planner.Plan
    directory: str
    measured: float
    filled: float


async def plan(guest: Guest, config: Config, directory: Path) -> Planned:
    """Plan a save of ``guest`` into ``directory``, which is measured where it was not and can be.

    Raises Unreachable and its like, BadDirectory, NotPermitted; Refused where nothing is known of
    the guest's memory, or its settings leave nothing to choose.
    """
    request = save_request.request(config, guest)
    async with open_files.reserved(), attach.attached(guest, config, only_look=True) as session:
        found = await facts.gather(session, config.state)
        with store.directory(directory) as held:
            refusal = await shielded.in_thread(held.direct_io_refusal)
            await learning.measured_if_needed(config.state, held)
            learned = await learning.learn(config, found, held, request)
            if isinstance(learned, str):
                raise errors.Refused(
                    f"the save of guest {guest.name!r} cannot be planned: {learned}",
                    hint="to read its memory, run mapsave as root, or as the user of its QEMU",
                )
            bounds = planner.Bounds(takes_direct=refusal is None)
            return Planned(
                planner.plan(request.settings, learned, bounds),
                held.path,
                learned.probe.measured,
                learned.layout.filled,
            )
