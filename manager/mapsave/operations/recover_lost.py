"""What an interrupted operation was about, where its journal is damaged.

A whole line of a journal says all. Without one, the partial image of a save does: its metadata
repeat what the journal had begun with.
"""

from __future__ import annotations

import dataclasses
import os
import re

import msgspec

from mapsave import errors
from mapsave.config import Config
from mapsave.image import image, store
from mapsave.operations import journal, journal_facts
from mapsave.operations.begun import Begun, RestoreBegun, SaveBegun

HINT = (
    "check with 'query-status' whether its guest is paused, and resume it ('cont'); then move "
    "the journal away"
)
_KINDS: dict[str, type[Begun]] = {"save": SaveBegun, "restore": RestoreBegun}
# The key in what msgspec says of one that is missing, or of the wrong type.
_KEY = re.compile(r"field `(\w+)`|\$\.(\w+)")


def known(config: Config, orphan: journal.Orphan) -> journal.Orphan:
    """Return ``orphan`` with all that is known of its operation.

    Raises JournalLost where nothing says what it was about, JournalUnusable if unreadable.
    """
    where = str(orphan.path)
    if orphan.problem is not None:
        facts = _of_partial(config, orphan.path.name) if orphan.kind == "save" else None
        if facts is not None:
            return dataclasses.replace(orphan, facts=facts, is_unsure=True)
        kept = orphan.problem.startswith("none")
        lost = errors.JournalLost if kept else errors.JournalUnusable
        raise lost(f"the journal {where!r} is damaged: {orphan.problem}", hint=HINT)
    return orphan


def read(orphan: journal.Orphan) -> Begun:
    """Return what a journal says of its operation.

    Raises Unsupported, JournalUnusable where it is not as this version writes it.
    """
    where = str(orphan.path)
    if orphan.kind not in _KINDS:
        raise errors.Unsupported(
            f"{where!r}: this version does not know the operation {orphan.kind!r}",
            hint="recover with the version of mapsave that wrote it",
        )
    try:
        return msgspec.convert(orphan.facts, _KINDS[orphan.kind])
    except msgspec.ValidationError as error:
        found = _KEY.search(str(error))
        key = (found[1] or found[2]) if found else ""
        raise errors.JournalUnusable(
            f"the journal {where!r} lacks {key!r}, or has it in another form than this version "
            "writes",
            hint=HINT,
        ) from None


def is_blank(config: Config, orphan: journal.Orphan) -> bool:
    """Return whether the manager of a journal died before its first step: nothing was touched."""
    if orphan.problem != journal.BLANK:
        return False
    return orphan.kind != "save" or _of_partial(config, orphan.path.name) is None


def is_kept(config: Config, path: str) -> bool:
    """Return whether a partial image may be what a damaged journal spoke of."""
    try:
        with image.opened(path) as opened:
            if not opened.has_superblock:
                return False
            facts = opened.metadata.get("recovery")
    except (errors.MapsaveError, OSError):
        return False
    name = facts.get("journal") if isinstance(facts, dict) else None
    return journal_facts.is_lost(config.state, os.path.basename(str(name)) if name else None)


def _of_partial(config: Config, name: str) -> dict[str, object] | None:
    """Return the facts of the journal ``name`` from the partial image of its save."""
    if not config.images.is_dir():
        return None
    with store.directory(config.images) as held:
        for file in sorted(filter(image.is_partial_name, os.listdir(held.fd))):
            if not image.is_abandoned(held.fd, file):
                continue
            try:
                with image.opened(os.path.join(held.path, file)) as opened:
                    facts = opened.metadata.get("recovery")
                    uuid = str(opened.block.uuid)
            except (errors.MapsaveError, OSError):
                continue
            if isinstance(facts, dict) and facts.get("journal") == name:
                return {**facts, "uuid": uuid}
    return None
