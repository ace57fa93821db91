"""Every error that mapsave reports, with what scripts may rely on.

One base class. Each subclass fixes a stable ``id``, the exit code of the command line and the HTTP
status of the service; its docstring is the meaning column of ``docs/errors.md``, which
``python -m mapsave.error_table`` prints. An instance adds the message (what is wrong and where), a
hint (what to do) and data for machines.

Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 refused by preflight, 4 save failed,
5 restore failed, 6 image invalid, 7 not permitted, 8 busy, 9 interrupted.
"""

from collections.abc import Mapping

# A name is written once, where its class is: these have nothing but error classes.
from mapsave.errors.access import *  # noqa: F403
from mapsave.errors.base import *  # noqa: F403
from mapsave.errors.base import MapsaveError
from mapsave.errors.before import *  # noqa: F403
from mapsave.errors.outcome import *  # noqa: F403
from mapsave.errors.permissions import denied as denied
from mapsave.errors.permissions import explained as explained
from mapsave.errors.permissions import of_os_error as of_os_error


def classes(base: type[MapsaveError] = MapsaveError) -> list[type[MapsaveError]]:
    """Return ``base`` and every error class below it."""
    return [base, *(found for child in base.__subclasses__() for found in classes(child))]


def from_dict(document: Mapping[str, object]) -> MapsaveError:
    """Return the error that ``as_dict`` made, of its own class; of the base class where unknown."""
    known = {cls.id: cls for cls in classes()}
    error = MapsaveError.__new__(known.get(str(document.get("id")), MapsaveError))
    hint, data = document.get("hint"), document.get("data")
    # Subclasses may be made from other arguments; their attributes are the same.
    MapsaveError.__init__(
        error,
        str(document.get("message")),
        hint=None if hint is None else str(hint),
        **(data if isinstance(data, dict) else {}),
    )
    return error
