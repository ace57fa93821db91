"""What an image says about itself: who was saved, by what, from which command line, and when."""

from __future__ import annotations

import datetime
import platform
from typing import TYPE_CHECKING, Any

import manager
from manager.operations import facts as guest_facts

if TYPE_CHECKING:
    from manager.image.image import Contents
    from manager.labels.label import Label
    from manager.operations.facts import Facts
    from manager.plan.strategy import Strategy


def now() -> str:
    """Return the time in UTC as ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def before(guest: str, found: Facts, strategy: Strategy, *, live: bool) -> dict[str, Any]:
    """Return what is known before the save: the metadata of the partial image."""
    host = platform.uname()
    return {
        "mapsave": manager.__version__,
        "guest": {"name": guest, "qemu_name": found.name, "uuid": found.uuid},
        "qemu": {"version": str(found.version), "package": found.version.package},
        "machine": found.machine,
        "cpu": found.cpu,
        "run_state": found.run_state,
        "memory": {"base": found.memory.base, "plugged": found.memory.plugged},
        "command": guest_facts.command(found.pid),
        "strategy": strategy.as_dict(),
        "live": live,
        "host": {"name": host.node, "kernel": host.release, "architecture": host.machine},
        "started": now(),
    }


def after(
    known: dict[str, Any],
    contents: Contents,
    label: Label | None,
    *,
    duration: float,
    paused_at: float | None,
) -> dict[str, Any]:
    """Return ``known`` completed by what the save has shown: the metadata of the saved image.

    ``duration`` in seconds; ``paused_at`` in seconds since the epoch, None for a guest that did not
    run.
    """
    return {
        **known,
        "machine": contents.stream.machine,
        "ram_blocks": [
            {"name": block.name, "bytes": block.used_length, "used_pages": used}
            for block, used in zip(contents.stream.blocks, contents.used_pages, strict=True)
        ],
        "data_bytes": contents.data_bytes,
        "label": label.as_dict() if label else None,
        "paused_at": paused_at,
        "ended": now(),
        "duration_s": round(duration, 6),
    }
