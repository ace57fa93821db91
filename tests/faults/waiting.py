"""A destination that waits for an image."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.kit import qemu

MIB = 1 << 20


@contextmanager
def waiting(*arguments: str, machine: str = "none", size: str = "64M") -> Iterator[qemu.Qemu]:
    with qemu.running(
        *arguments, machine=machine, memory=size, incoming=True, name="destination"
    ) as destination:
        yield destination
