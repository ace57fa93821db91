"""A destination that waits for an image."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.kit import qemu

if TYPE_CHECKING:
    from collections.abc import Iterator


MIB = 1 << 20


@contextmanager
def waiting(*arguments: str, machine: str = "none", size: str = "64M") -> Iterator[qemu.Qemu]:
    """Run a destination."""
    with qemu.running(
        *arguments, machine=machine, memory=size, incoming=True, name="destination"
    ) as destination:
        yield destination
