"""Whether an image can be a stranger's: who else than the trusted could have written it.

Trusted are root, the user that mapsave runs as, and the one to whom the label policy gives images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.image import ownership

if TYPE_CHECKING:
    from mapsave.image.image import Image
    from mapsave.labels.policy import Policy

_SHOWN = 5
_WHO = "others than root, mapsave's own user and the label policy's owner"
_OTHERS = "others than root and mapsave's own user"


def users(policy: Policy | None = None) -> frozenset[int]:
    """Return the ids of the trusted users. Raises PolicyViolation where the policy's has none."""
    owner = None
    if policy is not None:
        from mapsave.labels import dac  # a policy is there, so it is loaded

        owner = dac.owner_id(policy)
    return frozenset({0, os.geteuid()} | (set() if owner is None else {owner}))


def strangers(opened: Image, trusted: frozenset[int]) -> list[str]:
    """Return how others than the ``trusted`` could have written an image; empty if they cannot."""
    return ownership.of_file(opened.path, opened.fd, trusted)


def check_image(opened: Image, trusted: frozenset[int]) -> None:
    """Raise UntrustedImage where others than the ``trusted`` could have written the image."""
    _check(
        strangers(opened, trusted),
        f"{opened.path!r} is writable by {_WHO}",
        hint="see 'mapsave inspect' for what it would run; move it to a directory that "
        "only they can write to, or use --trust-image",
    )


def check_directory(path: str, trusted: frozenset[int]) -> None:
    """Raise UntrustedDirectory where an image in it could be exchanged by others."""
    _check(
        ownership.of_directory(path, trusted),
        f"{path!r} is writable by {_WHO}",
        hint="an image in it would not be restored: chown it, remove the permission (chmod "
        "go-w, setfacl -b), or save to another directory",
        error=errors.UntrustedDirectory,
    )


def check_readable_file(path: Path, fd: int, what: str) -> None:
    """Raise UntrustedImage where others could have written the file ``path``, open as ``fd``."""
    _check(
        ownership.of_file(str(path), fd, users()),
        f"{what} {str(path)!r} is writable by {_OTHERS}",
        hint="copy it to a directory that only they can write to, or use --trust-image",
    )


def check_program(name: str) -> None:
    """Raise UntrustedImage where others could have written the program ``name``, if it is there."""
    import shutil  # slow to import, and rarely needed

    path = shutil.which(name)
    if path is None:
        return
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = ownership.of_file(path, fd, users())
    finally:
        os.close(fd)
    _check(
        found,
        f"the recorded program {path!r} is writable by {_OTHERS}",
        hint="start the guest with 'launch:' in the configuration, or use --trust-image",
    )


def _check(
    found: list[str],
    what: str,
    *,
    hint: str,
    error: type[errors.MapsaveError] = errors.UntrustedImage,
) -> None:
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        shown = "; ".join(found[:_SHOWN]) + more
        raise error(f"{what}: {shown}", hint=hint, strangers=found)
