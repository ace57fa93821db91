"""``mapsave`` with a service that waits less than a second for clients, not half a minute."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit import service


def command(**patience: float) -> list[str]:
    """Return what runs ``mapsave`` with that patience; see ``connections.Patience``."""
    code = (
        "from mapsave.cli import start; from mapsave.service.api import connections;"
        f"connections.USUAL = connections.Patience(**{patience!r}); start.command()"
    )
    return [sys.executable, "-c", code]


@contextlib.contextmanager
def staying_up(mapsaved: service.Service) -> Iterator[None]:
    """Fail if something is logged as an error in the meantime, or is under way afterwards."""
    before = len(mapsaved.logged())
    with service.emulated_ended(mapsaved.site):
        yield
        assert mapsaved.get("/v1/health")["operations"] == 0
    told = mapsaved.logged()[before:]
    assert not [words for words in ("Traceback", " error ", " critical ") if words in told], told


def memory(mapsaved: service.Service) -> int:
    """Return the bytes of memory that the service has written to and no one else has."""
    with open(f"/proc/{mapsaved.pid}/smaps_rollup") as file:
        sizes = {line.split()[0]: line.split()[1] for line in file if line.startswith("Private")}
    return int(sizes["Private_Dirty:"]) << 10


def hanging_until(place: Path) -> list[str]:
    """Return what runs ``mapsave`` where nothing can be read of an image until ``place`` is."""
    code = (
        "import os, time; from mapsave.operations import inspect\n"
        "def hanging(look):\n"
        "    def hang(*given):\n"
        f"        while not os.path.exists({str(place)!r}): time.sleep(0.05)\n"
        "        return look(*given)\n"
        "    return hang\n"
        "inspect.inspect, inspect.verify = hanging(inspect.inspect), hanging(inspect.verify)\n"
        "from mapsave.cli import start; start.command()"
    )
    return [sys.executable, "-c", code]
