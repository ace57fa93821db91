"""What a save would do: the preflight checks run to the end, and the strategy."""

from __future__ import annotations

from typing import TypedDict

from mapsave import errors, open_files
from mapsave.config import Config, Guest
from mapsave.image.metadata import ProcessPart
from mapsave.monitor import fdset, process
from mapsave.operations import attach, check, facts, metadata, save_request


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
        await fdset.check_passed(session)
        with save_request.place(guest, config, request) as (held, name):
            preflight = check.Preflight.of(config, found, held, name, request)
            lines, error = check.report(preflight)
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
