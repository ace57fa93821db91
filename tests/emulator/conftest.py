"""Fixtures: a random guest's RAM, in odd sizes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator import helpers


@pytest.fixture
def source(tmp_path: Path) -> Iterator[helpers.Qmp]:
    """A running emulator of 33 MiB whose RAM is half used, page by page."""
    with helpers.emulator(tmp_path, "--pattern", "fragmented", "--seed", "7") as qmp:
        yield qmp


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[helpers.Qmp]:
    """An emulator of 33 MiB that waits for a restore."""
    directory = tmp_path / "destination"
    directory.mkdir()
    with helpers.emulator(directory, "--incoming", "defer") as qmp:
        yield qmp
