"""The protocol that every transport to a QEMU monitor fulfils."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mapsave.monitor.domain import Domain

# Seconds until a command that QEMU should answer at once counts as unanswered. QEMU's main loop
# can be held for seconds by a slow disk, so this is patient; nothing fast depends on it.
COMMAND_TIMEOUT = 60.0
# `stop` and `quit` drain and flush the guest's disks first.
DRAIN_TIMEOUT = 600.0
# Once a command was not answered. QEMU answers them in order, so the next one is sent only if a
# question is answered within this time.
SILENT_TIMEOUT = 2.0


@dataclasses.dataclass(frozen=True)
class Version:
    """A QEMU's version from the monitor's greeting, and the package string of its builder."""

    major: int
    minor: int
    micro: int
    package: str

    @classmethod
    def of(cls, reply: Mapping[str, object]) -> Version:
        """Return the version in the greeting, or in a reply of ``query-version``."""
        number = reply["qemu"]
        assert isinstance(number, dict)
        package = str(reply.get("package", ""))
        return cls(int(number["major"]), int(number["minor"]), int(number["micro"]), package)

    @property
    def release(self) -> tuple[int, int, int]:
        return (self.major, self.minor, self.micro)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


@dataclasses.dataclass(frozen=True)
class Event:
    """An event of QEMU: its name and data (``docs/interop/qmp-spec.rst``)."""

    name: str
    data: Mapping[str, object]


class Events(Protocol):
    async def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event; None after ``timeout`` seconds. At the end raises MonitorLost."""


class Session(Protocol):
    @property
    def address(self) -> str:
        """The monitor as users name it: ``qmp:/path``."""

    @property
    def version(self) -> Version:
        """The QEMU's version."""

    @property
    def pid(self) -> int | None:
        """QEMU's process id as we see it; None where it is not known."""

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Execute a command and return its value.

        Raises CommandRefused with QEMU's message, MonitorLost, and MonitorTimeout after
        ``timeout`` seconds (None: COMMAND_TIMEOUT). Where the last one was not answered, and
        QEMU still does not answer, it is not sent at all.
        """

    async def processors(self) -> list[dict[str, Any]]:
        """Return the guest's processors as ``query-cpus-fast`` lists them; asked once.

        Raises as ``execute`` does.
        """

    async def pass_descriptor(self, fd: int, fdset: int, opaque: str) -> int:
        """Add ``fd``, which stays ours, to a set; return its number in QEMU. Raises as above."""

    async def try_descriptor(self, fd: int) -> None:
        """Pass ``fd`` to QEMU, which closes it again; nothing is done where libvirt passes them.

        Raises CommandRefused where it does not arrive, and as above.
        """

    async def pause(self) -> None:
        """Stop the guest's processors; QEMU drains its disks before it answers."""

    async def resume(self) -> None:
        """Resume the guest. Raises CommandRefused where QEMU, or what manages it, refuses."""

    async def end(self, timeout: float) -> None:
        """End QEMU; return once it is gone. Raises MonitorLost, CommandRefused, MonitorTimeout."""

    async def domain(self) -> Domain | None:
        """Return the guest as libvirt describes it, asked once; None for one not of libvirt."""

    def events(self, *names: str) -> AbstractContextManager[Events]:
        """Listen to the events of these names from now on."""

    def abandon(self) -> None:
        """Raise MonitorLost for every command from now on: QEMU hangs, and is left as it is."""

    async def wait_lost(self, timeout: float) -> bool:
        """Wait until QEMU has closed the connection; False after ``timeout`` seconds."""
