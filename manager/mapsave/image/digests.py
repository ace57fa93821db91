"""Digests of an image's header, domain XML and cookie, against rot.

A superblock slot and the metadata have checksums of their own. libvirt's header, with the XML
and the cookie after it, has none, so the metadata hold its SHA-256. It is no seal: anyone who
can write an image can write its digests as well. ``virsh save-image-edit`` and ``-define`` wipe
the metadata, so an image that they have rewritten has no digests, like one that libvirt saved.
"""

import dataclasses
import hashlib

from mapsave import errors
from mapsave.image.libvirt_header import LibvirtHeader
from mapsave.image.metadata import Metadata


def of(header: LibvirtHeader) -> str:
    """Return the SHA-256 of header, XML and cookie, as they are in the complete image, in hex."""
    return hashlib.sha256(dataclasses.replace(header, complete=True).pack()).hexdigest()


def added(header: LibvirtHeader | None, metadata: Metadata) -> Metadata:
    """Return ``metadata`` with the digests of an image; a native one needs no more."""
    return metadata if header is None else {**metadata, "digests": {"libvirt_header": of(header)}}


def kept(header: LibvirtHeader | None, metadata: Metadata) -> Metadata:
    """Return ``metadata`` with the digests that ``checked`` has taken out of them, if any."""
    return added(header if header is not None and header.is_digested else None, metadata)


def checked(header: LibvirtHeader, metadata: Metadata) -> LibvirtHeader:
    """Return ``header`` with whether it has a digest, which is taken out of the metadata.

    Raises InvalidImage where header, XML or cookie are not what the metadata have a digest of.
    """
    recorded = metadata.pop("digests", {}).get("libvirt_header")
    if recorded is not None and recorded != of(header):
        raise errors.InvalidImage(
            "libvirt's header, the domain XML or the cookie is damaged (digest does not match)",
            hint="restore from another copy; or rewrite it with 'virsh save-image-define'",
        )
    return dataclasses.replace(header, is_digested=recorded is not None)


def missing(header: LibvirtHeader | None, *, written: bool) -> str | None:
    """Return why damage of header and XML cannot be detected; None where it can.

    ``written``: mapsave has metadata in the image.
    """
    if header is None or header.is_digested:
        return None
    if written:
        return "there is no digest of its header and domain XML: an older mapsave saved it"
    return (
        "there are no digests of its header and domain XML: libvirt saved it, or 'virsh "
        "save-image-edit' has rewritten it"
    )
