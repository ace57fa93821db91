"""Where a migration goes to or comes from: ``uri`` and ``channels`` of the QMP commands.

Source: QEMU's ``migration/migration.c`` and ``migration/file.c`` of 10.0; every text observed.
"""

import dataclasses
import errno
import os
import re
from typing import NotRequired, TypedDict

from mapsave.emulator import faults, schema
from mapsave.emulator.faults import QmpError
from mapsave.emulator.migration_options import Capabilities

_OFFSET = ",offset="
_SIZE = re.compile(r"\s*([+-]?)(?:(0x[0-9a-f]+)|(\d+(?:\.\d*)?|\.\d+)([bkmgtpe]?))", re.IGNORECASE)
_OTHER_PROTOCOLS = {
    "exec:": "exec",
    "rdma:": "rdma",
    "tcp:": "socket",
    "unix:": "socket",
    "vsock:": "socket",
    "fd:": "socket",
}
_SOCKET = {"type": schema.anything, "path": schema.anything}


class Addr(TypedDict):
    transport: str
    filename: NotRequired[str]
    offset: NotRequired[int]


# One entry of the argument ``channels``.
Channel = TypedDict("Channel", {"channel-type": str, "addr": Addr})
CHANNELS = schema.array(
    schema.struct(
        channel_type=schema.enum("main", "cpr"),
        addr=schema.union(
            "transport",
            {
                "socket": _SOCKET,
                "exec": {"args": schema.array(schema.string)},
                "rdma": {"host": schema.string, "port": schema.string},
                "file": {"filename": schema.string, "offset": schema.uint64},
            },
        ),
    )
)


@dataclasses.dataclass(frozen=True)
class Address:
    """``filename`` and ``offset`` (bytes) are of the transport ``file``, the only one done here."""

    transport: str
    filename: str = ""
    offset: int = 0
    multi_channel: bool = False


def outgoing(uri: str | None, channels: list[Channel] | None) -> Address:
    """Return the address that ``migrate`` was given. Raises QmpError."""
    if not (channels := _channels(uri, channels)):
        return parse_uri(uri or "")
    mains = [one["addr"] for one in channels if one["channel-type"] == "main"]
    if len(mains) > 1:
        raise QmpError("Channel list has more than one main entry")
    if not mains:
        faults.die("migrate without a main channel dereferences its missing address")
    return _from_addr(mains[0])


def incoming(uri: str | None, channels: list[Channel] | None) -> Address:
    """Return the address that ``migrate-incoming`` was given. Raises QmpError."""
    if not (channels := _channels(uri, channels)):
        return parse_uri(uri or "")
    if len(channels) > 1:
        raise QmpError("Channel list must have only one entry, for type 'main'")
    return _from_addr(channels[0]["addr"])


def _channels(uri: str | None, channels: list[Channel] | None) -> list[Channel]:
    if (uri is None) == (not channels):
        raise QmpError("need either 'uri' or 'channels' argument")
    return channels or []


def _from_addr(addr: Addr) -> Address:
    transport, filename, offset = addr["transport"], addr.get("filename", ""), addr.get("offset", 0)
    return Address(transport, filename, offset, multi_channel=transport == "socket")


def parse_uri(uri: str) -> Address:
    """Return what ``uri`` means. Raises QmpError for an unknown protocol or a bad offset."""
    for prefix, transport in _OTHER_PROTOCOLS.items():
        if uri.startswith(prefix):
            return Address(transport, multi_channel=transport == "socket" and prefix != "fd:")
    if not uri.startswith("file:"):
        raise QmpError(f"unknown migration protocol: {uri}")
    filename, separator, text = uri.removeprefix("file:").partition(_OFFSET)
    return Address("file", filename, _parse_offset(text) if separator else 0)


def _parse_offset(text: str) -> int:
    """Return the bytes that ``text`` means to QEMU's ``qemu_strtosz``. Raises QmpError."""

    def bad(number: int) -> QmpError:
        return QmpError(f"file URI has bad offset {text}: {os.strerror(number)}")

    match = _SIZE.fullmatch(text)
    if match is None:
        raise bad(errno.EINVAL)
    sign, hexadecimal, decimal, suffix = match.groups()
    value: float
    if hexadecimal:
        value = exact = int(hexadecimal, 16)
    else:
        factor = 1024 ** ("bkmgtpe".index(suffix.lower()) if suffix else 0)
        if "." in decimal and factor == 1:
            raise bad(errno.EINVAL)
        value = float(decimal) * factor
        exact = int(decimal) * factor if "." not in decimal else int(value)
    if (sign == "-" and value) or exact >= 1 << 64:
        raise bad(errno.ERANGE)
    return exact


def check_transport(address: Address, capabilities: Capabilities) -> None:
    """Raise QmpError if the capabilities in force need another kind of transport."""
    seekable = address.transport == "file"
    if capabilities["mapped-ram"] and not seekable:
        raise QmpError("Migration requires seekable transport (e.g. file)")
    if capabilities["multifd"] and not (
        address.multi_channel or (seekable and capabilities["mapped-ram"])
    ):
        raise QmpError("Migration requires multi-channel URIs (e.g. tcp)")
