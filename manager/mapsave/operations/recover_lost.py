"""What an interrupted operation was about, where its journal is damaged.

A whole line of a journal says all. Without one, the partial image of a save does: its metadata
repeat what the journal had begun with.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.image import image, store
from mapsave.operations import journal, journal_facts, metadata

if TYPE_CHECKING:
    from mapsave.config import Config
    from mapsave.operations.journal import Orphan

HINT = (
    "check with 'query-status' whether its guest is paused, and resume it ('cont'); then move "
    "the journal away"
)
_MAYBE_NUMBER = (int, type(None))
_TYPES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "save": {
        **dict.fromkeys(("guest", "directory", "name", "then"), str),
        **dict.fromkeys(("monitor", "settings"), dict),
        **dict.fromkeys(("replace", "was_running"), bool),
        **dict.fromkeys(("pid", "process_started"), _MAYBE_NUMBER),
        "fdset": int,
    },
    "restore": {"guest": str, "image": str},
}


def known(config: Config, orphan: Orphan) -> Orphan:
    """Return ``orphan`` with all that is known of its operation.

    Raises JournalUnusable where it is not as we write them, JournalLost where it is damaged and
    nothing else says what it was about.
    """
    where = str(orphan.path)
    if orphan.problem is not None:
        facts = _of_partial(config, orphan.path.name) if orphan.kind == "save" else None
        if facts is not None:
            return dataclasses.replace(orphan, facts=facts, is_unsure=True)
        kept = orphan.problem.startswith("none")
        lost = errors.JournalLost if kept else errors.JournalUnusable
        raise lost(f"the journal {where!r} is damaged: {orphan.problem}", hint=HINT)
    for key, wanted in _TYPES.get(orphan.kind, {}).items():
        if key not in orphan.facts or not isinstance(orphan.facts[key], wanted):
            words = (
                f"the journal {where!r} lacks {key!r}, or has it in another form than this "
                "version writes"
            )
            raise errors.JournalUnusable(words, hint=HINT)
    return orphan


def is_blank(config: Config, orphan: Orphan) -> bool:
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
            facts = opened.metadata.get(metadata.RECOVERY)
    except (errors.MapsaveError, OSError):
        return False
    name = facts.get("journal") if isinstance(facts, dict) else None
    return journal_facts.is_lost(config.state, os.path.basename(str(name)) if name else None)


def _of_partial(config: Config, name: str) -> dict[str, Any] | None:
    """Return the facts of the journal ``name`` from the partial image of its save."""
    if not config.images.is_dir():
        return None
    with store.directory(config.images) as held:
        for file in sorted(filter(image.is_partial_name, os.listdir(held.fd))):
            if not image.is_abandoned(held.fd, file):
                continue
            try:
                with image.opened(os.path.join(held.path, file)) as opened:
                    facts = opened.metadata.get(metadata.RECOVERY)
                    uuid = str(opened.block.uuid)
            except (errors.MapsaveError, OSError):
                continue
            if isinstance(facts, dict) and facts.get("journal") == name:
                return {**facts, "uuid": uuid}
    return None
