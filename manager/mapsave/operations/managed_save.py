"""Managed saves: images where libvirt keeps its own, which it restores at the domain's next start.

``virsh start``, autostart and virt-manager restore ``NAME.save`` of libvirt's save directory, and
ask no one, and remove it once it is restored; no other name there matters to them (libvirt 11.3,
qemu_driver.c: qemuDomainObjStart). So an image that must not be restored any more has to lose its
name: libvirt knows no marks.
"""

import contextlib
import dataclasses
import os
import shlex
import uuid as uuids

from msgspec import structs

from mapsave import domain_xml, errors
from mapsave.image import image
from mapsave.image.image import Image
from mapsave.operations import managed_place, origin
from mapsave.operations.facts import Facts
from mapsave.operations.managed_place import Managed
from mapsave.operations.save_request import Request

_STALE = ".stale"


def settled(request: Request, found: Facts) -> tuple[Request, Managed | None]:
    """Return the request with ``managed`` on or off, and where a managed save goes.

    Raises Refused where one was asked for and libvirt would not restore it.
    """
    wanted, domain = request.settings.managed, found.domain
    if wanted == "on" and domain is not None:
        place = managed_place.of(domain.name, found.pid)
        if domain.is_transient:
            raise errors.Refused(
                f"domain {domain.name!r} is transient: libvirt forgets it when it shuts down, and "
                "restores managed saves of persistent domains only",
                hint="omit --managed, or make it persistent with 'virsh define'",
            )
        if place is None:
            raise errors.Refused(
                f"domain {domain.name!r}: cannot find out where libvirt keeps managed saves",
                hint="run mapsave as root on the host of the guest, or omit --managed",
            )
        return request, place
    place = None
    can_be = request.image is None and request.format == "libvirt"
    if wanted == "auto" and request.for_shutdown and request.settings.then == "quit" and can_be:
        place = (
            managed_place.of(domain.name, found.pid) if domain and not domain.is_transient else None
        )
    settings = structs.replace(request.settings, managed="off" if place is None else "on")
    return dataclasses.replace(request, settings=settings), place


def check_none(found: Facts, request: Request) -> None:
    """Raise Refused where libvirt has a managed save that is older than the running guest.

    By the file where it can be seen: libvirt itself looks for it only when it starts.
    """
    domain = found.domain
    assert domain is not None
    place = managed_place.of(domain.name, found.pid)
    name, is_there = domain.name, domain.has_managed_save
    remove = f"virsh managedsave-remove {shlex.quote(name)}"
    if place is not None and os.access(place.directory, os.X_OK, effective_ids=True):
        is_there = os.path.lexists(place.path)
        if not domain.has_managed_save:  # virsh would find nothing to remove
            remove = f"mapsave discard --yes {shlex.quote(place.path)}"
    if not is_there:
        return
    if request.settings.managed != "on":
        raise errors.Refused(
            f"libvirt has a managed save of domain {name!r}, which is older than the running "
            "guest: the next start would restore it",
            hint=remove,
        )
    if not request.replace:
        raise errors.ImageExists(
            f"libvirt has a managed save of domain {name!r} already, older than the running guest",
            hint=f"use --replace, or remove it: {remove}",
        )


def check_no_other(opened: Image, domain: str, pid: int | None) -> None:
    """Raise Refused where libvirt has another managed save of a domain than the image to restore.

    The domain's next start would restore that, over disks that have changed since.
    """
    place = managed_place.of(domain, pid)
    if place is None or not os.path.lexists(place.path) or _is_of(place.path, opened.block.uuid):
        return
    raise errors.Refused(
        f"libvirt has a managed save of domain {domain!r}, which its next start would restore, "
        f"and {opened.path!r} is another image",
        hint=f"restore {place.path!r}, or discard it: mapsave discard --yes "
        f"{shlex.quote(place.path)}",
    )


def in_place(opened: Image, noted: str | None, pid: int | None) -> list[str]:
    """Return where libvirt would find the image: ``noted``, and beside what QEMU ``pid`` tells."""
    found = {noted} if noted is not None else set()
    with contextlib.suppress(errors.InvalidImage):
        if (xml := origin.domain_xml(opened)) is not None:
            place = managed_place.of(domain_xml.identity(xml).name, pid)
            found |= {place.path} if place is not None else set()
    return sorted(path for path in found if _is_of(path, opened.block.uuid))


def _is_of(path: str, uuid: uuids.UUID) -> bool:
    try:
        with image.opened(path) as found:
            return found.block.uuid == uuid
    except errors.MapsaveError:
        return False


def stale(path: str) -> str:
    """Return the name that an image has which libvirt must not restore any more."""
    return path + _STALE


def where(path: str) -> str:
    """Return where an image is: at ``path``, or set aside."""
    return stale(path) if not os.path.lexists(path) and os.path.lexists(stale(path)) else path


def set_aside(path: str) -> None:
    """Take an image out of libvirt's sight, durably. Raises OSError."""
    os.rename(path, stale(path))
    _sync(path)


def put_back(path: str) -> None:
    """Undo ``set_aside``, durably. Raises OSError."""
    os.rename(stale(path), path)
    _sync(path)


def remove(path: str) -> None:
    """Remove an image that was set aside: its guest runs. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(stale(path))


def _sync(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
