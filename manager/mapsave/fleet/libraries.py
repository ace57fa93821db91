"""The libraries of the extra ``fleet``, which nothing else needs: psycopg and Procrastinate."""

import importlib.util

from mapsave import errors

_NAMES = ("psycopg", "procrastinate")


def check() -> None:
    """Raise Unsupported unless they are installed; nothing of them is imported."""
    missing = [name for name in _NAMES if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.Unsupported(
            f"the Python libraries {' and '.join(missing)} are needed for a fleet, and are not "
            "installed",
            hint="install them (pip install 'mapsave[fleet]')",
        )
