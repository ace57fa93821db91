"""Fixtures of the cases."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli

IMAGES = Path("/var/lib/mapsave")
SOCKET = Path("/run/mapsave/mapsave.sock")


class Site(cli.Site):
    """A site whose service listens where that of an operator does."""

    @property
    def socket(self) -> Path:
        """Where a service listens that a case has started."""
        return SOCKET


@pytest.fixture
def on_xfs() -> Iterator[cli.Site]:
    """The same where files can share their extents."""
    directory = IMAGES / "xfs"
    yield Site(directory)
    for each in directory.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


@pytest.fixture
def site() -> Iterator[cli.Site]:
    """An operator's set-up below /var/lib/mapsave, all of it labelled as what is there."""
    directory = Path(tempfile.mkdtemp(dir=IMAGES))
    yield Site(directory)
    shutil.rmtree(directory)
