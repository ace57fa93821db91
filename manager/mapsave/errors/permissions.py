"""What the kernel refuses for want of permission: one error, which names what refuses, and why."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from mapsave.errors.access import NotPermitted
from mapsave.errors.base import MapsaveError

_FITS = (
    "owner and mode would allow it: see whether a security module (SELinux, AppArmor), an "
    "immutable file (lsattr) or a sticky directory (mode 1777) forbids it"
)


def denied(
    message: str,
    path: str | os.PathLike[str],
    need: int = os.R_OK,
    /,
    *,
    hint: str | None = None,
    **data: Any,
) -> NotPermitted:
    """Return the error for ``message``, with what refuses the access ``need`` (``os.R_OK``, …).

    ``path`` is looked at now: it, or the directory on the way that may not be searched.
    """
    found = _refusing(os.path.abspath(path), need)
    if found is None:
        return NotPermitted(message, hint=hint or _FITS, **data)
    where, owner, mode = found
    who = owner if owner == "root" else f"{owner} or root"
    return NotPermitted(
        f"{message} ({where!r} belongs to {owner}, mode {mode}; mapsave runs as "
        f"{_name(os.geteuid())})",
        hint=hint or f"run mapsave as {who}, or change owner or mode of {where!r}",
        **{"path": where, "owner": owner, "mode": mode, **data},
    )


def of_os_error(
    error: OSError,
    message: str,
    path: str | os.PathLike[str],
    need: int = os.R_OK,
    /,
    *,
    otherwise: type[MapsaveError],
    hint: str | None = None,
    **data: Any,
) -> MapsaveError:
    """Return what ``error`` comes to: ``denied`` for EACCES and EPERM, else ``otherwise``.

    ``hint`` and ``data`` are of the latter: space and the like do not help where permission lacks.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return denied(message, path, need)
    return otherwise(message, hint=hint, **data)


@contextlib.contextmanager
def explained(
    work: str,
    path: str | os.PathLike[str],
    need: int = os.R_OK,
    /,
    *,
    otherwise: type[MapsaveError],
    hint: str | None = None,
) -> Iterator[None]:
    """Raise what ``of_os_error`` returns in place of an OSError of ``work``, a verb and more."""
    try:
        yield
    except OSError as error:
        words = f"cannot {work}: {error.strerror}"
        raise of_os_error(error, words, path, need, otherwise=otherwise, hint=hint) from None


def _refusing(path: str, need: int) -> tuple[str, str, str] | None:
    """Return the first component whose mode refuses, its owner and mode; None where none does.

    Where ``path`` is not there, it is to be made: its directory counts.
    """
    steps = path.split("/")
    for number in range(1, len(steps)):
        directory = "/".join(steps[:number]) or "/"
        if not _may(directory, os.X_OK):
            return _described(directory, os.X_OK)
    if os.path.lexists(path):
        if not _may(path, need):
            return _described(path, need)
        return None
    parent = os.path.dirname(path)
    need = os.W_OK | os.X_OK
    return None if _may(parent, need) else _described(parent, need)


def _may(path: str, need: int) -> bool:
    return os.access(path, need, effective_ids=True)


def _described(path: str, need: int) -> tuple[str, str, str] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if found.st_uid == os.geteuid() and not need & ~(found.st_mode >> 6):
        return None  # what refuses is something else
    return path, _name(found.st_uid), f"{stat.S_IMODE(found.st_mode):04o}"


def _name(uid: int) -> str:
    import pwd  # only where something has failed

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
