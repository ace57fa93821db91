"""Fixtures: an emulated QEMU and a session with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.monitor.emulated import Emulated, emulated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulated]:
    """A running guest of 4 MiB."""
    with emulated(tmp_path / "emulator.qmp") as found:
        yield found
