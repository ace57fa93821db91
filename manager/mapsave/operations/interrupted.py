"""An interrupted operation: what its journal says of it, also where that is damaged.

A whole line of a journal says all. Without one, the partial image of a save does: its metadata
repeat what the journal had begun with.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from mapsave import errors, typed
from mapsave.config import Config
from mapsave.image import abandoned, image, partial_names, store
from mapsave.labels.label import Problem
from mapsave.operations import journal, journal_facts
from mapsave.operations.begun import Begun, RestoreBegun, SaveBegun
from mapsave.operations.steps import Step

HINT = (
    "check with 'query-status' whether its guest is paused, and resume it ('cont'); then move "
    "the journal away"
)
_KINDS: dict[str, type[Begun]] = {
    "save": SaveBegun,
    "restore": RestoreBegun,
    "prove": RestoreBegun,  # which loads an image, too
}
# The key in what msgspec says of one that is missing, or of the wrong type.
_KEY = re.compile(r"field `(\w+)`|\$\.(\w+)")

_Begun = TypeVar("_Begun", SaveBegun, RestoreBegun)


@dataclasses.dataclass(frozen=True)
class Interrupted(Generic[_Begun]):
    """An operation to recover, and ``problems`` met with; with ``dry_run`` nothing is changed."""

    config: Config
    orphan: journal.Orphan
    begun: _Begun
    dry_run: bool
    problems: list[Problem] = dataclasses.field(default_factory=list)

    @property
    def process(self) -> tuple[int, int] | None:
        """Pid and start time of the QEMU; None where it is not in our sight."""
        pid, started = self.begun.pid, self.begun.process_started
        return None if pid is None or started is None else (pid, started)

    def warn(self, text: str) -> None:
        """Note a problem that no further recovery can put right."""
        self.problems.append(Problem(text, recoverable=False))

    async def outcome(self, finish_or_undo: Callable[[], Awaitable[str]], default: str) -> str:
        """Return what was done, if the journal says so (else ``default``), or do it."""
        if self.orphan.reached(Step.TIDY):
            return self.begun.outcome or default
        outcome = await finish_or_undo()
        if not self.dry_run:
            # Where the disk is full, the partial image that fills it goes next.
            with contextlib.suppress(OSError):
                journal.add(self.orphan, Step.TIDY, outcome=outcome)
        return outcome


def known(config: Config, orphan: journal.Orphan) -> journal.Orphan:
    """Return ``orphan`` with all that is known of its operation.

    Raises JournalLost where nothing says what it was about, JournalUnusable if unreadable,
    NotPermitted.
    """
    where = str(orphan.path)
    if orphan.problem is not None:
        if not os.access(where, os.R_OK, effective_ids=True):
            raise errors.denied(f"cannot read the journal {where!r}", where)
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
        return typed.convert(orphan.facts, _KINDS[orphan.kind])
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
    with contextlib.suppress(PermissionError):  # opening it says so
        if not config.images.is_dir():
            return None
    with store.directory(config.images) as held:
        for file in sorted(filter(partial_names.is_partial_name, os.listdir(held.fd))):
            if not abandoned.is_abandoned(held.fd, file):
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
