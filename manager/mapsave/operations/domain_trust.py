"""Whether libvirt may be handed a domain XML: what it names must be known on this host.

Known is what the existing domain of that uuid is defined with, what mapsave noted when it saved it
here, what ``trust`` in the configuration lists, and the emulators that libvirt itself would choose.
"""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import domain_resources, errors
from mapsave.domain_resources import Resource
from mapsave.monitor import libvirt_connection
from mapsave.operations import known_domains
from mapsave.trust_settings import Trust

if TYPE_CHECKING:
    from libvirt import virConnect


_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Vetting:
    """What an XML, named ``what``, may have: also what the domains ``uuids`` have."""

    trust: Trust
    state: Path
    uuids: frozenset[str]
    what: str


async def check(connection: virConnect, xml: str, vetting: Vetting) -> None:
    """Raise ForeignResource where ``xml`` names what is not known, InvalidImage if it is no XML."""
    found = await libvirt_connection.call(foreign, connection, xml, vetting)
    if found:
        listed = "; ".join(map(str, found[:_SHOWN]))
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise errors.ForeignResource(
            f"{vetting.what} names resources that the domain does not have on this host: "
            f"{listed}{more}",
            hint="define the domain (virsh define) or list it under 'trust' in the "
            "configuration; if you trust its author, use --trust-image",
            resources=[dataclasses.asdict(each) for each in found],
        )


def foreign(connection: virConnect, xml: str, vetting: Vetting) -> list[Resource]:
    """Return what ``xml`` names and is not known. Blocks. Raises InvalidImage."""
    named = set(domain_resources.of_xml(xml))
    named -= {each for each in named if _is_listed(each, vetting.trust)}
    # What takes a call to libvirt comes last.
    for uuid in vetting.uuids if named else ():
        named -= known_domains.recorded(vetting.state, uuid)
    for uuid in vetting.uuids if named else ():
        named -= _defined(connection, uuid)
    if any(each.kind == "program" for each in named):
        named -= _default_emulators(connection, xml)
    return sorted(named)


def _defined(connection: virConnect, uuid: str) -> set[Resource]:
    """Return what the persistent definition of a domain names; nothing where there is none."""
    libvirt = libvirt_connection.library()
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    try:
        handle = connection.lookupByUUIDString(uuid)
        if not handle.isPersistent():
            return set()
        return set(domain_resources.of_xml(handle.XMLDesc(flags)))
    except libvirt.libvirtError:
        return set()


def _default_emulators(connection: virConnect, xml: str) -> set[Resource]:
    libvirt = libvirt_connection.library()
    root = domain_resources.parsed(xml)
    kind = root.find("./os/type")
    arch = kind.get("arch") if kind is not None else None
    try:
        told = connection.getDomainCapabilities(None, arch, None, root.get("type"))
    except libvirt.libvirtError:
        return set()
    path = domain_resources.parsed(told, "domain capabilities").findtext("./path")
    return {Resource("program", path)} if path else set()


def _is_listed(resource: Resource, trust: Trust) -> bool:
    if resource.kind == "program":
        return resource.name in trust.programs
    if resource.kind == "other":
        return resource.name in trust.others
    return resource.name in trust.devices or _is_below(resource.name, trust.paths)


def _is_below(path: str, places: Iterable[str]) -> bool:
    """Return whether ``path`` is one of the places, or below one; ``..`` leads nowhere."""
    if not path.startswith("/") or ".." in path.split("/"):
        return False
    plain = os.path.normpath(path)
    return any(
        plain == place or plain.startswith(place.rstrip("/") + "/")
        for place in map(os.path.normpath, places)
    )
