"""A guest for several files of tests."""

from collections.abc import Iterator

import pytest

from tests.faults.slow import NAME
from tests.kit import cli, patterns, qemu


@pytest.fixture
def guest(site: cli.Site) -> Iterator[qemu.Qemu]:
    with qemu.guest(site, NAME, memory="32M", ram=patterns.sparse, paused=False) as found:
        yield found
