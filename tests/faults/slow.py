"""An emulated guest that takes ten seconds to save."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import struck
from tests.kit import cli, processes, qmp, state, wait

NAME = "web01"
IMAGE = "one.mapsave"


@contextmanager
def slow_guest(site: cli.Site) -> Iterator[Path]:
    """Run an emulated guest that takes ten seconds to save, and yield the path of its monitor."""
    path = site.directory / "slow.qmp"
    size = ("--memory", "64M", "--pattern", "random", "--throttle", "6M")
    with processes.running([sys.executable, "-m", "mapsave", "emulate", "--qmp", str(path), *size]):
        wait.until(path.exists, what="the emulated guest's monitor")
        site.add_guest(NAME, path)
        yield path


def looked_at(path: Path) -> state.State:
    """Return the state of the emulated guest, whose only monitor must be free."""
    client = qmp.connect(path)
    try:
        return state.of(client)
    finally:
        client.close()


def await_writing(site: cli.Site) -> None:
    """Wait until pages arrive in the partial image."""

    def writes() -> bool:
        return any(path.stat().st_size > 4 << 20 for path in struck.partials(site))

    wait.until(writes, what="pages in the partial image")
