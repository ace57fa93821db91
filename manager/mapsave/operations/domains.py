"""The domains of a libvirt daemon, and whether each can be saved."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.config import Config, Guest, LibvirtDomain
from mapsave.monitor import domain, libvirt_connection
from mapsave.operations import preview, save_request

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain

Line = dict[str, Any]  # as ``mapsave list --libvirt --json`` prints it

_AT_ONCE = 8


async def domains(config: Config, uri: str) -> list[Line]:
    """Return what ``listed`` does, and for each domain what prevents a save. Raises as it does."""
    lines = await listed(uri)
    slots = asyncio.Semaphore(_AT_ONCE)
    await asyncio.gather(*(_judge(config, uri, line, slots) for line in lines))
    return lines


async def listed(uri: str) -> list[Line]:
    """Return a line for each domain at ``uri``, by name: whether it can be saved is not known yet.

    Raises Unsupported, Unreachable, NotPermitted, UsageError.
    """
    libvirt = libvirt_connection.library()
    async with libvirt_connection.connected(uri) as connection:
        try:
            lines = await libvirt_connection.call(_lines, libvirt, uri, connection)
        except libvirt.libvirtError as error:
            raise errors.Unreachable(f"libvirt at {uri!r}: {error}") from None
    return sorted(lines, key=lambda line: str(line["name"]))


def _lines(libvirt: ModuleType, uri: str, connection: virConnect) -> list[Line]:
    """Return a line for each domain. Blocks."""
    found = (_line(libvirt, uri, handle) for handle in connection.listAllDomains())
    return [line for line in found if line is not None]


def _line(libvirt: ModuleType, uri: str, handle: virDomain) -> Line | None:
    """Return the line of a domain; None where it has disappeared since it was listed. Blocks."""
    try:
        active = bool(handle.isActive())
        return {
            "name": handle.name(),
            "uuid": handle.UUIDString(),
            "id": handle.ID() if active else None,
            "uri": uri,
            "state": domain.state_word(libvirt, handle.state()[0]),
            "persistent": bool(handle.isPersistent()),
            "active": active,
            "can_save": False,
            "error": None,
        }
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


async def _judge(config: Config, uri: str, line: Line, slots: asyncio.Semaphore) -> None:
    guest = Guest(str(line["name"]), libvirt=LibvirtDomain(str(line["uuid"]), uri))
    async with slots:
        try:
            _, error = await preview.preview(guest, config, save_request.request(config, guest))
        except errors.MapsaveError as found:
            error = found
    line["can_save"] = error is None
    line["error"] = error.as_dict() if error else None
