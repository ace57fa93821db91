"""What all journals of a state directory speak of, owned or not."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mapsave.image import partial_names
from mapsave.operations import journal, journal_file


def partial_images(state: Path) -> set[str]:
    """Return the paths of the partial images that journals speak of, owned or not."""
    return {
        os.path.join(str(facts["directory"]), partial_names.partial_name(str(facts["name"])))
        for facts in _all_facts(state)
        if "directory" in facts and "name" in facts
    }


def operations(state: Path) -> set[str]:
    """Return the ids of the service's operations that journals speak of, owned or not."""
    return {str(facts["operation"]) for facts in _all_facts(state) if facts.get("operation")}


def within(state: Path) -> set[str]:
    """Return the names of the journals around operations that are not dealt with yet."""
    return {str(facts["within"]) for facts in _all_facts(state) if facts.get("within")}


def claimed(state: Path, image_uuid: uuid.UUID) -> bool:
    """Return whether a journal, owned or not, speaks of the image ``image_uuid`` as its own."""
    return any(facts.get("uuid") == str(image_uuid) for facts in _all_facts(state))


def _all_facts(state: Path) -> Iterator[journal_file.Facts]:
    for path in journal.paths(state):
        if (orphan := journal.read(path)) is not None:
            yield orphan.facts


def damaged(state: Path) -> list[Path]:
    """Return the damaged journals that were kept to be looked at."""
    return sorted((state / "journal").glob(f"{journal_file.PATTERN}{journal_file.DAMAGED}"))


def is_lost(state: Path, name: str | None) -> bool:
    """Return whether the journal ``name``, or without one any of a save, is damaged or empty."""
    if name is not None and (state / "journal" / name).exists():
        orphan = journal.read(state / "journal" / name)
        return orphan is None or orphan.problem is not None
    lost = [path.name.removesuffix(journal_file.DAMAGED) for path in damaged(state)]
    lost += [
        path.name
        for path in journal.paths(state)
        if (orphan := journal.read(path)) is not None and orphan.problem is not None
    ]
    return name in lost if name is not None else any(each.startswith("save-") for each in lost)
