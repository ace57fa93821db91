"""Preflight of a libvirt guest: libvirt is not at it, and has nothing that a save makes wrong."""

import shlex

from mapsave import errors
from mapsave.monitor.session import Version
from mapsave.operations import managed_save
from mapsave.operations.facts import Facts
from mapsave.operations.save_request import Request

# libvirt before 11.4 passes `detach` to QEMU's `migrate`, which dropped it in 11.0 (its
# removed-features.rst; tried with libvirt 11.3.0 and QEMU 11.1.3). mapsave passes none.
_LIBVIRT_WITHOUT_DETACH = (11, 4, 0)
_QEMU_WITHOUT_DETACH = (11, 0, 0)


def check(found: Facts, request: Request) -> str:
    """Return what libvirt has of a domain. Raises Refused or one of its kin."""
    from mapsave.monitor.domain import DomainState  # which loads an XML parser

    known = found.domain
    assert known is not None
    if known.job:
        raise errors.AlreadyMigrating(
            f"libvirt has an active job on domain {known.name!r}: {known.job}",
            hint="wait until it has finished; 'virsh domjobinfo' shows it, 'virsh domjobabort' "
            "aborts it",
        )
    if known.state == DomainState.PMSUSPENDED:
        raise errors.WrongRunState(
            f"domain {known.name!r} is suspended by its own power management",
            hint=f"wake it up: virsh dompmwakeup {shlex.quote(known.name)}",
        )
    if known.block_jobs:
        raise errors.NotMigratable(
            f"domain {known.name!r} has active block jobs on {', '.join(known.block_jobs)}",
            hint="wait until they have finished, or use 'virsh blockjob --abort'",
        )
    managed_save.check_none(found, request)
    devices = f", host devices {', '.join(known.host_devices)}" if known.host_devices else ""
    alone = "transient: it disappears from libvirt when it shuts down"
    what = alone if known.is_transient else "persistent, no active job"
    return f"{what}{devices}{_not_by_libvirt(known.libvirt, found.version)}"


def _not_by_libvirt(libvirt: tuple[int, int, int], qemu: Version) -> str:
    """Return what libvirt itself cannot do with a guest of this QEMU; empty if it can save it."""
    if libvirt >= _LIBVIRT_WITHOUT_DETACH or qemu.release < _QEMU_WITHOUT_DETACH:
        return ""
    return (
        f"; mapsave can save it, libvirt {'.'.join(map(str, libvirt))} itself cannot with QEMU "
        f"{qemu}, which no longer accepts the argument 'detach' of 'migrate': virsh save, "
        "managedsave, dump, migrate and snapshots of memory fail; update libvirt to 11.4 or later"
    )
