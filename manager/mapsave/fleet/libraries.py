"""The libraries of the extra ``fleet``, which nothing else needs: psycopg and Procrastinate."""

import importlib
import importlib.util

from mapsave import errors

_NAMES = ("psycopg", "procrastinate")


def check() -> None:
    """Raise Unsupported unless they are installed, psycopg with a libpq that it can load."""
    missing = [name for name in _NAMES if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.Unsupported(
            f"the Python libraries {' and '.join(missing)} are needed for a fleet, and are not "
            "installed",
            hint="install them (pip install 'mapsave[fleet]')",
        )
    try:
        importlib.import_module("psycopg")
    except ImportError as error:
        # Without a library of its own it loads the system's: so it is in the packages.
        raise errors.Unsupported(
            f"the Python library psycopg cannot be loaded: {' '.join(str(error).split())}",
            hint="install PostgreSQL's client library (apt install libpq5)",
        ) from None
