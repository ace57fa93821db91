"""Which operations are in progress, or were interrupted: what no one may take mapsave away from."""

from pathlib import Path
from typing import TypedDict

from mapsave.operations import journal


class Pending(TypedDict):
    """An operation with an open journal; ``step`` is the last one that is known."""

    operation: str
    guest: str | None
    image: str | None
    step: str | None
    in_progress: bool
    journal: str


def pending(state: Path) -> list[Pending]:
    """Return the operations whose journals are open, and ask no guest.

    Raises NotPermitted, ConfigMissing.
    """
    with journal.orphans(state) as interrupted, journal.orphans(state, around=True) as around:
        found = [*interrupted, *around]
        left = {orphan.path for orphan in found}
        running = [journal.read(path) for path in journal.paths(state) if path not in left]
    found += [orphan for orphan in running if orphan is not None]
    return [_described(orphan, in_progress=orphan.path not in left) for orphan in found]


def _described(orphan: journal.Orphan, *, in_progress: bool) -> Pending:
    facts = orphan.facts
    image = facts.get("image")
    if "directory" in facts and "name" in facts:
        image = str(Path(str(facts["directory"])) / str(facts["name"]))
    return {
        "operation": orphan.kind,
        "guest": facts.get("guest"),
        "image": image,
        "step": orphan.last,
        "in_progress": in_progress,
        "journal": str(orphan.path),
    }
