"""The libraries of the extra ``export``, which nothing else needs: zstandard and pyrage."""

import importlib
from types import ModuleType

from mapsave import errors


def zstd() -> ModuleType:
    """Return the module zstandard. Raises Unsupported where it is not installed."""
    return _library(
        "zstandard",
        "to compress archives, or read compressed ones",
        "or do without: 'mapsave export --no-compression', 'zstd -d | mapsave import -'",
    )


def age() -> ModuleType:
    """Return the module pyrage. Raises Unsupported where it is not installed."""
    return _library(
        "pyrage",
        "to encrypt archives, or read encrypted ones",
        "or use the command age: 'mapsave export -o - | age -r …', 'age -d | mapsave import -'",
    )


def _library(name: str, purpose: str, otherwise: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise errors.Unsupported(
            f"the Python library {name} is needed {purpose}, and is not installed",
            hint=f"install it (pip install 'mapsave[export]'), {otherwise}",
        ) from None
