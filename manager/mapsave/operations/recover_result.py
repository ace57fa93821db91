"""What the outcome of a recovery means, and the error of what did not come to its end."""

from mapsave import errors
from mapsave.image.store import Entry, EntryState
from mapsave.operations import recover_restore, recover_save

# Outcomes that say themselves what is to be done.
_SPEAKS = (
    recover_save.TAKEN_OVER,
    recover_restore.PAUSED,
    recover_restore.LOADED,
    recover_restore.CLONE_LOADED,
    recover_restore.MAY_RUN,
    recover_restore.MAY_HAVE_RUN,
)


def holds_guest(outcome: str) -> bool:
    """Return whether a save has an image that holds its guest, or did until it went."""
    return outcome.startswith(recover_save.COMMITTED) and outcome != recover_save.TAKEN_OVER


def is_good(entry: Entry) -> bool:
    """Return whether an image is whole and committed, be it restored already or stale."""
    return entry.state in (EntryState.SAVED, EntryState.RESTORED)


def is_saved(entry: Entry) -> bool:
    """Return whether an image is what a save was to make: good, and not stale from the start."""
    return is_good(entry) and not entry.metadata.get("continued")


def interrupted(who: str, outcome: str, step: str | None) -> errors.Interrupted:
    """Return the error of an operation that recovery has not brought to its end.

    Its data have the last ``step`` that is known, which those of no other Interrupted do.
    """
    return errors.Interrupted(
        f"{who} exited during the operation; {outcome}",
        hint=None if outcome in _SPEAKS else "start it again",
        step=step,
    )
