"""Fixtures of the cases."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = Path("/var/lib/mapsave")


@pytest.fixture
def site() -> Iterator[cli.Site]:
    """An operator's set-up below /var/lib/mapsave, all of it labelled as what is there."""
    directory = Path(tempfile.mkdtemp(dir=IMAGES))
    yield cli.Site(directory)
    shutil.rmtree(directory)
