"""What libvirt reports about one of its domains."""

from __future__ import annotations

import dataclasses
import enum
from types import ModuleType
from typing import TYPE_CHECKING

from mapsave.monitor import definition

if TYPE_CHECKING:
    from libvirt import virDomain


class DomainState(enum.StrEnum):
    """A domain's state as ``virsh domstate`` words it; libvirt's name of it is VIR_DOMAIN_NAME."""

    NOSTATE = "no state"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTDOWN = "shutting down"
    SHUTOFF = "shut off"
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain as libvirt describes it.

    ``xml``: its live definition as libvirt itself would write it into a save image: migratable,
    passwords included. ``live_xml``: with what libvirt has added at its start (expanded CPU,
    security labels). ``persistent_xml``: what it will be started from next; None if transient.
    ``job`` and ``block_jobs``: what libvirt is doing with it just now. ``libvirt``: the daemon's
    version.
    """

    uri: str
    name: str
    uuid: str
    state: str
    xml: str
    live_xml: str
    persistent_xml: str | None
    job: str | None
    block_jobs: tuple[str, ...]
    has_managed_save: bool
    host_devices: tuple[str, ...]
    libvirt: tuple[int, int, int]

    @property
    def is_transient(self) -> bool:
        """Whether it disappears when it ends."""
        return self.persistent_xml is None

    @property
    def restarts(self) -> bool:
        """Whether libvirt starts it again when it shuts down."""
        return definition.restarts(self.live_xml)

    @property
    def image_label(self) -> str | None:
        """The SELinux label that libvirt gives to the domain's own disks; None without one."""
        return definition.image_label(self.live_xml, "selinux")

    @property
    def cookie(self) -> str:
        """The cookie of a save image: how the CPU came out, which is not in ``xml``."""
        return definition.cookie(self.live_xml)


_STOPPED = {
    "SHUTDOWN": "was shut down",
    "DESTROYED": "was destroyed",
    "CRASHED": "crashed",
    "MIGRATED": "was migrated away",
    "SAVED": "was saved by another client",
    "FAILED": "failed",
    "FROM_SNAPSHOT": "was reverted to a snapshot that is shut off",
}
_OPERATIONS = "VIR_DOMAIN_JOB_OPERATION_"


def state_word(libvirt: ModuleType, state: int) -> str:
    """Return the word of ``virsh domstate`` for a state of libvirt."""
    states = {getattr(libvirt, f"VIR_DOMAIN_{word.name}"): word for word in DomainState}
    return states.get(state, f"state {state}")


def how_stopped(libvirt: ModuleType, detail: int) -> str:
    """Return what became of a domain, from the detail of its lifecycle event STOPPED."""
    prefix = "VIR_DOMAIN_EVENT_STOPPED_"
    reasons = {getattr(libvirt, prefix + name): word for name, word in _STOPPED.items()}
    return reasons.get(detail, f"stopped ({detail})")


def describe(libvirt: ModuleType, handle: virDomain) -> Domain:
    """Ask libvirt about the active domain ``handle``. Blocks; raises libvirt's own error."""
    migratable = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
    inactive = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    live = handle.XMLDesc(0)
    return Domain(
        uri=handle.connect().getURI(),
        name=handle.name(),
        uuid=handle.UUIDString(),
        state=state_word(libvirt, handle.state()[0]),
        xml=definition.without_restore(handle.XMLDesc(migratable)),
        live_xml=live,
        persistent_xml=handle.XMLDesc(inactive) if handle.isPersistent() else None,
        job=_job(libvirt, handle),
        block_jobs=tuple(disk for disk in definition.disks(live) if handle.blockJobInfo(disk, 0)),
        has_managed_save=bool(handle.hasManagedSaveImage()),
        host_devices=tuple(definition.host_devices(live)),
        libvirt=_release(handle.connect().getLibVersion()),
    )


def _release(number: int) -> tuple[int, int, int]:
    """Return the parts of a version that libvirt tells as one number, such as 11003000."""
    return number // 1_000_000, number // 1000 % 1000, number % 1000


def _job(libvirt: ModuleType, handle: virDomain) -> str | None:
    """Return what job libvirt has under way on the domain; None without one."""
    stats = handle.jobStats()
    if stats["type"] == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    names = {
        getattr(libvirt, name): name.removeprefix(_OPERATIONS).lower().replace("_", " ")
        for name in vars(libvirt)
        if name.startswith(_OPERATIONS)
    }
    return str(names.get(stats.get("operation"), "unknown"))
