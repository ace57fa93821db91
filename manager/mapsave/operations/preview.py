"""What a save would do: the preflight checks run to the end, and the strategy."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TypedDict

from mapsave import errors, open_files, shielded
from mapsave.config import Config, Guest, Prove
from mapsave.image import image, store
from mapsave.image.metadata import ProcessPart
from mapsave.monitor import fdset, process
from mapsave.operations import (
    answering,
    attach,
    bounds,
    check,
    checkpoint_forecast,
    facts,
    learning,
    managed_save,
    metadata,
    restore_plan,
    restore_request,
    save_request,
)
from mapsave.operations.checkpoint_forecast import Forecast
from mapsave.operations.facts import Facts
from mapsave.plan import cost, planner


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
    managed: bool
    checks: list[check.Line]
    strategy: dict[str, bool | int | str]
    reasons: dict[str, str]
    checkpoint: Forecast


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
        request, managed = managed_save.settled(request, found)
        async with save_request.placed(guest, config, request, managed) as (held, name):
            preflight = check.Preflight.of(config, guest, found, held, name, request)
            lines, error = await answering.within(held.path, check.report, preflight)
            await preflight.learn(config, measures=False)
            await checkpoint_forecast.weigh(config, preflight)
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
                "managed": managed is not None,
                "checks": lines,
                "strategy": chosen.as_dict(),
                "reasons": chosen.reasons,
                "checkpoint": await _forecast(found, held, config),
            }, error


async def _forecast(found: Facts, held: store.Directory, config: Config) -> Forecast:
    forecast = checkpoint_forecast.forecast
    return await answering.within(held.path, forecast, found, held, config.state)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan, the directory it is for and when that was measured, and how full the RAM is.

    ``checkpoint`` is what one would cost. ``proof`` is how the image is proven, and the seconds
    that this takes beside the plan's.
    """

    plan: planner.Plan
    directory: str
    measured: float
    filled: float
    proof: tuple[Prove, float] | None
    checkpoint: Forecast


async def plan(guest: Guest, config: Config, directory: Path) -> Planned:
    """Plan a save of ``guest`` into ``directory``, which is measured where it was not and can be.

    Raises Unreachable and its like, BadDirectory, NotPermitted; Refused where nothing is known of
    the guest's memory, or its settings leave nothing to choose.
    """
    request = save_request.request(config, guest)
    async with open_files.reserved(), attach.attached(guest, config, only_look=True) as session:
        found = await facts.gather(session, config.state)
        await answering.check(directory)
        with store.directory(directory) as held:
            refusal = await answering.within(held.path, held.direct_io_refusal)
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
                (prove, cost.proof(learned.layout, learned.probe, prove))
                if (prove := request.settings.prove) != "none"
                else None,
                await _forecast(found, held, config),
            )


async def plan_restore(path: str, config: Config) -> restore_plan.Planned:
    """Plan a restore of the image at ``path``.

    Raises ImageNotFound, NotPermitted, InvalidImage or one of its kin.
    """
    async with shielded.entered(image.opened(path)) as opened:
        contents = await answering.within(os.path.dirname(path), opened.validate)
        settings = restore_request.Request(path).settings(config, bounds.owner(opened.metadata))
        return await restore_plan.plan(config, settings, opened, contents)
