"""What to change so that images can share a guest's RAM: options of ``launch:``, or domain XML."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapsave.image import store
    from mapsave.monitor.domain import Domain
    from mapsave.operations.facts import Facts
    from mapsave.operations.memory_backends import Backend

_RESTART = "shut the domain down and start it"
MEMORY_BACKING = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"


@dataclasses.dataclass(frozen=True)
class Remedies(abc.ABC):
    """The changes, as hints, for the RAM of one ``backend``; None where it has no name."""

    backend: Backend | None
    held: store.Directory

    @abc.abstractmethod
    def shared(self, size: int) -> str:
        """Return how RAM of ``size`` bytes becomes a shared file."""

    @abc.abstractmethod
    def placed(self) -> str:
        """Return how its file comes to be on the file system of the images."""

    @abc.abstractmethod
    def sized(self) -> str:
        """Return how it begins and ends where blocks of the file system do."""


def of(found: Facts, backend: Backend | None, held: store.Directory) -> Remedies:
    """Return the remedies for a guest."""
    if found.domain is not None:
        return _OfDomain(backend, held, found.domain)
    return _OfLaunch(backend, held)


@dataclasses.dataclass(frozen=True)
class _OfLaunch(Remedies):
    @property
    def _name(self) -> str:
        return self.backend.name if self.backend is not None else "ram"

    def shared(self, size: int) -> str:
        if self.backend is not None and self.backend.path is not None:
            return f"in the guest's launch:, set share=on in '-object …,id={self._name}'"
        file = f"-object memory-backend-file,id={self._name},size={size >> 20}M"
        file += f",mem-path={self.held.path}/NAME.ram,share=on -machine memory-backend={self._name}"
        return f"in the guest's launch:, give it that memory by '{file}'"

    def placed(self) -> str:
        return (
            "in the guest's launch:, set mem-path= of '-object memory-backend-file,"
            f"id={self._name}' to a file on the same file system"
        )

    def sized(self) -> str:
        return f"choose such a size and offset= for '-object …,id={self._name}'"


@dataclasses.dataclass(frozen=True)
class _OfDomain(Remedies):
    """libvirt makes the files at each start of a domain, in ``memory_backing_dir`` of qemu.conf.

    See https://libvirt.org/formatdomain.html#memory-backing.
    """

    domain: Domain

    @property
    def _has_huge_pages(self) -> bool:
        from mapsave import domain_resources  # which loads an XML parser

        root = domain_resources.parsed(self.domain.live_xml)
        return root.find("./memoryBacking/hugepages") is not None

    def shared(self, size: int) -> str:
        if self.backend is not None and self.backend.path is not None and not self._has_huge_pages:
            return (
                "in the domain's XML, set <access mode='shared'/> in <memoryBacking>, and no other "
                f"memAccess= of a <cell> or access= of a <memory>; {_RESTART}"
            )
        return (
            f"in the domain's XML, set {MEMORY_BACKING}{self._without}, and in libvirt's qemu.conf "
            f"memory_backing_dir to a directory on the file system of {self.held.path!r}; restart "
            f"libvirt's daemon, then {_RESTART}"
        )

    def placed(self) -> str:
        if self._has_huge_pages:
            return f"remove <hugepages/> from the domain's XML; {_RESTART}"
        return (
            "set memory_backing_dir in libvirt's qemu.conf to a directory there, restart libvirt's "
            f"daemon, then {_RESTART}"
        )

    def sized(self) -> str:
        return "choose such sizes for <memory> and <cell> in the domain's XML"

    @property
    def _without(self) -> str:
        return " without <hugepages/>" if self._has_huge_pages else ""
