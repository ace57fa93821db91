"""Sites on file systems that reflink."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, reflinks


@pytest.fixture(params=["xfs", "btrfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[cli.Site]:
    """A site on each of them."""
    with reflinks.site_on(request.param, tmp_path) as site:
        yield site


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[cli.Site]:
    """A site on one where that is enough."""
    with reflinks.site_on("xfs", tmp_path) as site:
        yield site
