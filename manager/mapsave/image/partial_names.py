"""How a partial image is named."""

import os

from mapsave import errors

PARTIAL_SUFFIX = ".partial"
NAME_MAX = 255  # bytes


def partial_name(name: str) -> str:
    """Return the name under which the image ``name`` is written until it is committed.

    Where the suffix would make it longer than a file name may be, the end is a digest instead.
    """
    if len(os.fsencode(name + PARTIAL_SUFFIX)) <= NAME_MAX:
        return name + PARTIAL_SUFFIX
    import hashlib  # rarely needed, and not where only the suffix is

    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    room = NAME_MAX - len(digest) - len(PARTIAL_SUFFIX) - 1
    head = os.fsencode(name)[:room].decode(errors="ignore")
    return f"{head}.{digest}{PARTIAL_SUFFIX}"


def is_partial_name(name: str) -> bool:
    """Return whether a file of that name or path is a partial image, whatever it says itself."""
    return name.endswith(PARTIAL_SUFFIX)


def partial_exists(partial: str) -> errors.Busy:
    """Return the error for a save whose partial image, of that name or path, is there already."""
    return errors.Busy(
        f"{partial!r} exists: another save is writing this image, or one was interrupted",
        hint="run 'mapsave recover' if no save is running; a file that mapsave did not write "
        "is not removed: move it away",
    )
