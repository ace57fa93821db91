"""Digests of an image's header, domain XML and cookie, against rot.

A superblock slot and the metadata have checksums of their own. libvirt's header, with the XML and
the cookie after it, has none, so the metadata hold its SHA-256. It is no seal: whoever can write an
image can write its digests as well. ``virsh save-image-edit`` and ``-define`` wipe the metadata, so
an image that they have rewritten has no digests, like one that libvirt saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

from manager import errors

if TYPE_CHECKING:
    from manager.image.libvirt_header import LibvirtHeader
    from manager.image.metadata import Metadata

_KEY = "libvirt_header"


def of(header: LibvirtHeader) -> str:
    """Return the SHA-256 of header, XML and cookie, as they are in the complete image, in hex."""
    return hashlib.sha256(dataclasses.replace(header, complete=True).pack()).hexdigest()


def added(header: LibvirtHeader | None, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return ``metadata`` with the digests of an image; a native one needs no more."""
    return metadata if header is None else {**metadata, "digests": {_KEY: of(header)}}


def check(header: LibvirtHeader, metadata: Metadata) -> None:
    """Raise InvalidImage where header, XML or cookie are not what the metadata have a digest of."""
    recorded = metadata.get("digests", {}).get(_KEY)
    if recorded is not None and recorded != of(header):
        raise errors.InvalidImage(
            "libvirt's header, the domain XML or the cookie is damaged (digest does not match)",
            hint="restore from another copy; or rewrite it with 'virsh save-image-define'",
        )


def missing(header: LibvirtHeader | None, metadata: Metadata, *, written: bool) -> str | None:
    """Return why header and XML cannot be told from damaged ones; None where they can.

    ``written``: mapsave has metadata in the image.
    """
    if header is None or _KEY in metadata.get("digests", {}):
        return None
    if written:
        return "an older mapsave saved it: there is no digest of its header and domain XML"
    return (
        "there are no digests of its header and domain XML: libvirt saved it, or 'virsh "
        "save-image-edit' has rewritten it"
    )
