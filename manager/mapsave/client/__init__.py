"""The client of the service, for programs; docs/client.md describes it. The commands use the same.

    from mapsave.client import Client, SaveOptions

    result = Client().save("web01", SaveOptions(then="resume"))

Each name is imported when it is used first: a command that lists images needs few of them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapsave.client.address import Tls as Tls
    from mapsave.client.address import Unix as Unix
    from mapsave.client.address import host as host
    from mapsave.client.asynchronous import AsyncClient as AsyncClient
    from mapsave.client.client import Client as Client
    from mapsave.client.events import Event as Event
    from mapsave.client.exchange import RequestInterrupted as RequestInterrupted
    from mapsave.client.options import CheckOptions as CheckOptions
    from mapsave.client.options import RestoreAllOptions as RestoreAllOptions
    from mapsave.client.options import RestoreOptions as RestoreOptions
    from mapsave.client.options import SaveAllOptions as SaveAllOptions
    from mapsave.client.options import SaveOptions as SaveOptions
    from mapsave.migration.progress import Progress as Progress
    from mapsave.service_settings import Remote as Remote

_PLACES = {
    "address": ("Tls", "Unix", "host"),
    "asynchronous": ("AsyncClient",),
    "client": ("Client",),
    "events": ("Event",),
    "exchange": ("RequestInterrupted",),
    "options": (
        "CheckOptions",
        "RestoreAllOptions",
        "RestoreOptions",
        "SaveAllOptions",
        "SaveOptions",
    ),
    "mapsave.migration.progress": ("Progress",),
    "mapsave.service_settings": ("Remote",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Return a public name (PEP 562). Raises AttributeError."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = _MODULES[name]
    return getattr(
        importlib.import_module(module if "." in module else f"{__name__}.{module}"), name
    )


def __dir__() -> list[str]:
    return __all__
