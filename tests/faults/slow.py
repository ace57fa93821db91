"""An emulated guest that takes long to save."""

from contextlib import AbstractContextManager
from pathlib import Path

from tests.faults import struck
from tests.kit import cli, emulated, qmp, state, wait

NAME = "web01"
IMAGE = "one.mapsave"


def slow_guest(site: cli.Site, throttle: str = "6M") -> AbstractContextManager[Path]:
    """Run an emulated guest that takes ten seconds to save, and yield the path of its monitor.

    Those that are not waited for are slower: whatever a busy host does, they are still at it.
    """
    return emulated.guest(site, NAME, size=64 << 20, throttle=throttle)


def looked_at(path: Path) -> state.State:
    """Return the state of the emulated guest, whose only monitor must be free."""
    with qmp.connect(path) as client:
        return state.of(client)


def await_writing(site: cli.Site) -> None:
    """Wait until pages arrive in the partial image."""

    def writes() -> bool:
        return any(path.stat().st_size > 2 << 20 for path in struck.partials(site))

    wait.until(writes, what="pages in the partial image")
