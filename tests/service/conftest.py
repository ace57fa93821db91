"""Services and metrics for several files of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, service
from tests.service import impatient
from tests.service.observing import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A service with an empty image directory."""
    (tmp_path / "images").mkdir()
    return State(tmp_path / "images")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with one guest that no one has started, and little patience for bodies."""
    site = cli.Site(tmp_path_factory.mktemp("attacked") / "site")
    site.add_guest("db", emulator={"memory": "8M"})
    with service.running(site, command=impatient.command(body=0.5)) as running:
        yield running


@pytest.fixture
def stays_up(attacked: service.Service) -> Iterator[None]:
    with impatient.staying_up(attacked):
        yield
