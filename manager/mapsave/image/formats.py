"""The two formats of an image, native and libvirt's: which one a file has, and what it says."""

import uuid as uuids

from mapsave import errors
from mapsave.image import digests, libvirt_format, libvirt_header, superblock
from mapsave.image.libvirt_header import LibvirtHeader, NewLibvirtHeader
from mapsave.image.metadata import Metadata
from mapsave.image.superblock import State, Superblock


def new(
    metadata: Metadata,
    stream_offset: int,
    libvirt: NewLibvirtHeader | None,
    digest_room: int = 0,
) -> tuple[Superblock, LibvirtHeader | None]:
    """Return the superblock of a new image, not written yet, and libvirt's header if it has one.

    Its stream begins after ``stream_offset`` where a header with ``digest_room`` bytes for digests
    needs more. Raises ValueError where the stream offset is not allowed, or XML or cookie cannot be
    written.
    """
    if libvirt is None:
        if digest_room:
            area = superblock.area_for(metadata) + digest_room
            stream_offset = max(stream_offset, superblock.METADATA_START + 2 * area)
        superblock.check_stream_offset(stream_offset)
        block = Superblock(State.PARTIAL, 0, stream_offset, uuids.uuid4())
        return block.reserved(digest_room), None
    stream_offset = libvirt_format.stream_offset(libvirt, metadata, stream_offset, digest_room)
    superblock.check_stream_offset(stream_offset)
    header = libvirt_header.laid_out(libvirt, stream_offset)
    place = libvirt_format.place(header)
    assert place is not None
    # Sequence 1, so that slot 0 is written first: after slot 1 the file would be M bytes long.
    block = Superblock(State.PARTIAL, 1, stream_offset, uuids.uuid4(), place=place)
    return block.reserved(digest_room), header


def slots(fd: int) -> tuple[Superblock | None, LibvirtHeader | None]:
    """Return mapsave's slots and libvirt's header, at least one of them. Raises InvalidImage."""
    if not libvirt_header.is_one(fd):
        return superblock.read(fd), None
    header = libvirt_header.read(fd)
    return libvirt_format.read_slots(fd, header), header


def read(
    fd: int, name: str, *, without_metadata: bool = False
) -> tuple[Superblock, Metadata, LibvirtHeader | None]:
    """Return superblock, metadata and libvirt's header. Raises InvalidImage, which has ``name``.

    With ``without_metadata`` an image whose metadata are lost has those that it would without.
    """
    try:
        header = None
        if libvirt_header.is_one(fd):
            header = libvirt_header.read(fd)
            libvirt_header.require_sparse(header, name)
            block, metadata = libvirt_format.read(fd, header, without_metadata=without_metadata)
            header = digests.checked(header, metadata)
        else:
            block = superblock.read(fd)
            is_lost = without_metadata and superblock.has_lost_metadata(fd, block)
            metadata = {}
            if block.metadata_length and not is_lost:
                metadata = superblock.read_metadata(fd, block)
    except errors.InvalidImage as error:
        error.message = f"{name!r}: {error.message}"
        raise
    return block, metadata, header
