"""Where a hook reaches its guest: as a domain of libvirt, or at a QMP socket."""

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.operations import attach
from mapsave.strict_json import Facts


def facts(config: Config, address: str | None) -> Facts:
    """Return ``domain`` and ``uri``, or ``socket``, of a guest's name or address.

    What does not apply or is not known is None.
    """
    found: Facts = {"domain": None, "uri": None, "socket": None}
    try:
        guest = config.guest(address) if address is not None else Guest("")
    except errors.MapsaveError:  # known from its image only
        return found
    if guest.libvirt is not None:
        return {**found, "domain": guest.libvirt.domain, "uri": guest.libvirt.uri}
    if guest.qmp is not None or guest.emulator is not None:
        return {**found, "socket": attach.socket_path(guest, config)}
    return found
