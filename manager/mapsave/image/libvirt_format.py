"""mapsave's slots and metadata in the padding of libvirt's header.

libvirt ignores the padding, and zeroes it when it rewrites the XML: the image then counts as one
that libvirt itself saved, known by its header alone::

    0        libvirt's header, domain XML, cookie
    ...      metadata area A, from the next multiple of 4 KiB
    middle   metadata area B, up to the slots
    M-8192   slot 0
    M-4096   slot 1
    M        QEMU's stream
"""

import dataclasses
import errno
import hashlib
import os
import uuid as uuids

from mapsave import domain_xml, errors, units
from mapsave.image import libvirt_header, superblock
from mapsave.image.libvirt_header import LibvirtHeader, NewLibvirtHeader
from mapsave.image.metadata import Metadata
from mapsave.image.superblock import METADATA_START, SLOT_SIZE, Place, State, Superblock

UNWRITTEN = 0  # sequence number of a superblock that is in no slot


def place(header: LibvirtHeader) -> Place | None:
    """Return where slots and metadata areas are; None where the padding has no room for slots."""
    slots = header.stream_offset - METADATA_START
    if slots < header.padding_offset:
        return None
    return Place(slots, units.round_up(header.padding_offset, SLOT_SIZE), header.stream_offset)


def stream_offset(
    new: NewLibvirtHeader, metadata: Metadata, at_least: int, digest_room: int
) -> int:
    """Return M for a new image, in bytes: room for XML, cookie, slots and two metadata areas.

    In the second of them is room for digests; the first is as long.

    So much room is also left for a later ``virsh save-image-edit``: 64 KiB, as libvirt leaves, and
    more. Raises ValueError where XML or cookie cannot be written.
    """
    texts = units.round_up(libvirt_header.text_length(new), SLOT_SIZE)
    area = superblock.area_for(metadata) + digest_room
    return max(at_least, texts + 2 * area + METADATA_START)


def read(
    fd: int, header: LibvirtHeader, *, without_metadata: bool = False
) -> tuple[Superblock, Metadata]:
    """Return superblock and metadata: ours where they are, else what libvirt's header says.

    With ``without_metadata`` also where ours are lost.

    As long as the header calls the image incomplete, its state is partial. Raises InvalidImage or
    one of its kin.
    """
    block = read_slots(fd, header)
    if block is None:
        block = _told_block(fd, header)
    if not header.complete:
        block = dataclasses.replace(block, state=State.PARTIAL)
    is_lost = without_metadata and superblock.has_lost_metadata(fd, block)
    if block.metadata_length and not is_lost:
        return block, superblock.read_metadata(fd, block)
    identity = domain_xml.identity(header.xml)
    return block, {
        "guest": {"name": identity.name, "qemu_name": identity.name, "uuid": identity.uuid},
        "run_state": "running" if header.was_running else "paused",
    }


def read_slots(fd: int, header: LibvirtHeader) -> Superblock | None:
    """Return the superblock that mapsave wrote into the padding, if any. Raises InvalidImage."""
    where = place(header)
    if where is None or superblock.is_torn_first(fd, where):
        return None
    try:
        return superblock.read(fd, where)
    except errors.NotAnImage:
        return None


def _told_block(fd: int, header: LibvirtHeader) -> Superblock:
    """Return what a superblock of the image would say; the same image has the same uuid."""
    digest = hashlib.sha256(dataclasses.replace(header, complete=True).pack()).digest()
    return Superblock(
        state=State.SAVED,
        sequence=UNWRITTEN,
        stream_offset=header.stream_offset,
        uuid=uuids.UUID(bytes=digest[:16]),
        file_length=os.fstat(fd).st_size,
        place=place(header) or superblock.NATIVE,
    )


def check_markable(fd: int, header: LibvirtHeader, block: Superblock) -> None:
    """Raise OSError (ENOSPC) where ``block`` cannot be written without changing what is libvirt's.

    An image that libvirt saved has zeros where the slots go, unless its XML was edited to fill it.
    """
    if block.sequence != UNWRITTEN:
        return
    where = place(header)
    if where and (superblock.is_blank(fd, where) or superblock.is_torn_first(fd, where)):
        return
    raise OSError(errno.ENOSPC, "libvirt's header has no space left for it")
