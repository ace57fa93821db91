"""An image's two superblock slots and its metadata.

The first M bytes of an image (``stream_offset``, 1 MiB unless configured) lie before QEMU's stream.
Offsets inside the stream are absolute, so M never changes. In a native image all of them are ours::

    0        slot 0   4 KiB
    4096     slot 1   4 KiB
    8192     metadata area A, up to the middle of [8192, M)
    middle   metadata area B
    ...      digest area, up to M, where one is reserved (``data_digests``)
    M        QEMU's stream

In an image in libvirt format slots and areas lie in the padding of libvirt's header, the slots
directly before M (``libvirt_format``). ``Place`` says where.

Updates go to the slot, and new metadata to the area, that is not in force: a torn write costs the
update, never the image. The valid slot with the highest sequence number counts. Once both slots
point to the same metadata, the other area gets a copy of it, for the case that they rot. Little
endian.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import struct
import uuid as uuids

from mapsave import errors, strict_json, units
from mapsave.image import metadata as metadata_area
from mapsave.image import syscalls
from mapsave.image.metadata import Metadata

SLOT_SIZE = 4096
SLOTS = 2
METADATA_START = SLOTS * SLOT_SIZE
MAGIC = b"MAPSAVE\0"
FORMAT_VERSION = 1
MIN_STREAM_OFFSET = 64 * units.KIB
MAX_STREAM_OFFSET = 1 * units.GIB
DEFAULT_STREAM_OFFSET = 1 * units.MIB
MAX_METADATA = 1 * units.MIB  # parsed, JSON takes many times its length
# The digest area is a head and, for each MiB of the file, a digest (``data_digests``).
DIGEST_HEAD = 64
DIGEST_SIZE = 16
MAX_DIGESTS = 128 * units.MIB  # for 8 TiB of RAM
# What a save adds to the metadata when it ends: RAM blocks, label, times.
_METADATA_GROWS = 32 * units.KIB
MAX_SEQUENCE = (1 << 63) - 1
KNOWN_FEATURES = 0  # the "must understand" feature flags that this version understands

# magic, format version, and these fields of Superblock.
_FIELDS = struct.Struct("<8sIIQQQQ16sQQQQQ32s")
_NAMES = (
    *("state", "sequence", "must_understand", "optional", "stream_offset", "uuid", "file_length"),
    *("metadata_offset", "metadata_length", "digest_offset", "digest_length", "metadata_sha256"),
)
_NEWER = "use the mapsave that saved it, or a newer one"
_CHECKSUM = hashlib.sha256
_CHECKSUM_SIZE = 32


class State(enum.IntEnum):
    PARTIAL = 1
    SAVED = 2
    RESTORED = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the slots and the metadata areas are, in bytes of the file; the default is native.

    Where the format's own header says what M is, ``stream_offset`` is that, and the slots end the
    metadata areas; a native image learns M from its slots.
    """

    slots: int = 0
    metadata: int = METADATA_START
    stream_offset: int | None = None

    def slot(self, index: int) -> int:
        return self.slots + index * SLOT_SIZE

    def area(self, stream_offset: int) -> tuple[int, int]:
        """Return beginning and end of both metadata areas together."""
        return self.metadata, stream_offset if self.stream_offset is None else self.slots

    def areas(self, stream_offset: int) -> tuple[int, int, int]:
        """Return where each of the two metadata areas begins, and the length of each."""
        low, high = self.area(stream_offset)
        room = max(0, high - low) // 2
        return low, low + room, room


NATIVE = Place()


@dataclasses.dataclass(frozen=True, slots=True)
class Superblock:
    """The contents of the slot in force. All offsets and lengths are bytes within the file."""

    state: State
    sequence: int
    stream_offset: int
    uuid: uuids.UUID
    file_length: int = 0
    metadata_offset: int = 0
    metadata_length: int = 0
    metadata_sha256: bytes = bytes(_CHECKSUM_SIZE)
    digest_offset: int = 0
    digest_length: int = 0
    must_understand: int = 0
    optional: int = 0
    place: Place = NATIVE

    @property
    def digest_room(self) -> int:
        """Bytes that are reserved for digests at the end of the second metadata area."""
        end = self.place.area(self.stream_offset)[1]
        return max(0, end - self.digest_offset) if self.digest_offset else 0

    @property
    def digests_needed(self) -> int:
        """Bytes that the digests of all from the stream to the end of the file take."""
        pieces = -(-self.file_length // units.MIB) - self.stream_offset // units.MIB
        return DIGEST_HEAD + DIGEST_SIZE * pieces

    @property
    def digests(self) -> str:
        """Whether there are digests of the data: ``taken``, ``pending`` (to be taken), ``none``.

        None can be taken where there is no room for them.
        """
        if self.digest_length:
            return "taken"
        room = min(self.digest_room, MAX_DIGESTS)
        return "pending" if room and self.digests_needed <= room else "none"

    def reserved(self, room: int) -> Superblock:
        """Return it with so many bytes reserved for digests."""
        end = self.place.area(self.stream_offset)[1]
        return dataclasses.replace(self, digest_offset=end - room if room else 0)

    def pack(self) -> bytes:
        """Return the slot as it is on disk, checksum included."""
        named = {name: getattr(self, name) for name in _NAMES}
        values = {**named, "uuid": self.uuid.bytes}.values()
        fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, *values)
        body = fields.ljust(SLOT_SIZE - _CHECKSUM_SIZE, b"\0")
        return body + _CHECKSUM(body).digest()


def _unpack(slot: bytes, place: Place) -> Superblock | None:
    """Return the superblock in ``slot``; None if its checksum is wrong.

    Raises UnsupportedImage where the checksum is right but the format is newer than we are.
    """
    body, checksum = slot[:-_CHECKSUM_SIZE], slot[-_CHECKSUM_SIZE:]
    if not slot.startswith(MAGIC) or _CHECKSUM(body).digest() != checksum:
        return None
    _, version, *values = _FIELDS.unpack_from(body)
    if version > FORMAT_VERSION:
        raise errors.UnsupportedImage(
            f"the image has format version {version}; this mapsave reads up to {FORMAT_VERSION}",
            hint=_NEWER,
        )
    named = dict(zip(_NAMES, values, strict=True))
    if unknown := named["must_understand"] & ~KNOWN_FEATURES:
        raise errors.UnsupportedImage(
            f"the image needs features 0x{unknown:x}, which this mapsave does not support",
            hint=_NEWER,
        )
    try:
        named["state"] = State(named["state"])
    except ValueError:
        raise errors.InvalidImage(f"superblock: unknown state {named['state']}") from None
    return Superblock(**{**named, "uuid": uuids.UUID(bytes=named["uuid"])}, place=place)


def check_stream_offset(stream_offset: int) -> None:
    """Raise ValueError unless M is at least 64 KiB, at most 1 GiB and a multiple of 4 KiB."""
    if not MIN_STREAM_OFFSET <= stream_offset <= MAX_STREAM_OFFSET or stream_offset % SLOT_SIZE:
        raise ValueError(
            f"stream offset {stream_offset} is not a multiple of 4 KiB from 64 KiB to 1 GiB"
        )


def _check(block: Superblock, size: int) -> None:
    """Raise InvalidImage where a field of ``block`` does not fit a file of ``size`` bytes."""
    _check_stream_offset(block)
    if block.sequence > MAX_SEQUENCE:
        raise errors.InvalidImage(f"superblock: sequence number {block.sequence}")
    if block.metadata_length > MAX_METADATA:
        raise errors.InvalidImage(f"superblock: metadata of {block.metadata_length} bytes")
    area = block.place.area(block.stream_offset)
    for what, offset, length, (low, high) in (
        ("metadata", block.metadata_offset, block.metadata_length, area),
        ("digest", block.digest_offset, block.digest_length, (area[0], block.file_length)),
    ):
        if length and not low <= offset <= offset + length <= high:
            raise errors.InvalidImage(
                f"superblock: {what} at {offset}, {length} bytes, lies outside {low}..{high}"
            )
    if block.digest_offset and not block.digest_length and not block.digest_room:
        raise errors.InvalidImage(
            f"superblock: room for digests at {block.digest_offset} lies outside {area}"
        )
    if block.state is State.PARTIAL:
        return
    if size < block.file_length:
        raise errors.TruncatedImage(
            f"the file has {size} bytes, but its superblock says {block.file_length}",
            size=size,
            expected=block.file_length,
        )
    if size > block.file_length:
        raise errors.InvalidImage(
            f"the file has {size} bytes, {size - block.file_length} more than when it was saved"
        )


def _check_stream_offset(block: Superblock) -> None:
    said = block.place.stream_offset
    if said is not None and block.stream_offset != said:
        raise errors.InvalidImage(
            f"superblock: stream at {block.stream_offset}, but the header before it says {said}"
        )
    try:
        if said is None:
            check_stream_offset(block.stream_offset)
    except ValueError as error:
        raise errors.InvalidImage(f"superblock: {error}") from None


def _slots(fd: int, place: Place) -> list[bytes]:
    return [os.pread(fd, SLOT_SIZE, place.slot(index)) for index in range(SLOTS)]


def read(fd: int, place: Place = NATIVE) -> Superblock:
    """Return the superblock in force of the image open as ``fd``, checked against its size.

    Raises NotAnImage where neither slot begins with the magic, InvalidImage or one of its kin where
    a field cannot be right.
    """
    size = os.fstat(fd).st_size
    slots = _slots(fd, place)
    if not any(slot.startswith(MAGIC) for slot in slots):
        raise errors.NotAnImage(
            "the file does not begin with a mapsave image header",
            hint="was it saved by mapsave, and copied completely?",
        )
    # A slot in the other's place would be overwritten by its own update, so it doesn't count.
    valid = [
        found
        for index, slot in enumerate(slots)
        if (found := _unpack(slot, place)) is not None and found.sequence % SLOTS == index
    ]
    if not valid:
        raise errors.InvalidImage(
            "both superblock slots are damaged (checksum or place does not match)"
        )
    block = max(valid, key=lambda found: found.sequence)
    _check(block, size)
    return block


def is_blank(fd: int, place: Place = NATIVE) -> bool:
    """Return whether nothing was ever written where the slots are: no bytes, or zeros."""
    return not any(slot.strip(b"\0") for slot in _slots(fd, place))


def is_torn_first(fd: int, place: Place) -> bool:
    """Return whether the first slot ever written there was torn: it is damaged, the other blank."""
    blank, written = sorted(_slots(fd, place), key=lambda slot: bool(slot.strip(b"\0")))
    return not blank.strip(b"\0") and written.startswith(MAGIC) and _unpack(written, place) is None


def read_metadata(fd: int, block: Superblock) -> Metadata:
    """Return the metadata in force, or their copy where they are damaged.

    Raises MetadataLost where both are, InvalidImage where they are not what metadata must be.
    """
    raw = _metadata_bytes(fd, block)
    if raw is None:
        raise errors.MetadataLost(
            f"metadata at {block.metadata_offset} is damaged (checksum does not match), and there "
            "is no good copy of it",
            hint="restore from another copy of the image; or 'mapsave restore --without-metadata', "
            "which compares less",
        )
    return metadata_area.parse(raw)


def has_lost_metadata(fd: int, block: Superblock) -> bool:
    """Return whether both copies of the metadata are damaged."""
    return block.metadata_length > 0 and _metadata_bytes(fd, block) is None


def damage(fd: int, block: Superblock) -> str | None:
    """Return what is damaged of the metadata; None where nothing is."""
    offset, copy = block.metadata_offset, _copy_offset(block)
    if not block.metadata_length or _metadata_at(fd, block, offset) is not None:
        return None
    if has_lost_metadata(fd, block):
        return "both copies of its metadata are damaged"
    return (
        f"its metadata at {offset} are damaged (checksum does not match), and their copy at {copy} "
        "is used: copy the image from elsewhere, or save the guest again"
    )


def _metadata_bytes(fd: int, block: Superblock) -> bytes | None:
    """Return the metadata in force, or their copy where they are damaged."""
    found = _metadata_at(fd, block, block.metadata_offset)
    return found if found is not None else _metadata_at(fd, block, _copy_offset(block))


def _metadata_at(fd: int, block: Superblock, offset: int) -> bytes | None:
    """Return the bytes at ``offset`` if they are the metadata in force."""
    raw = os.pread(fd, block.metadata_length, offset)
    return raw if hashlib.sha256(raw).digest() == block.metadata_sha256 else None


def _copy_offset(block: Superblock) -> int:
    """Return where the area begins that is not in force."""
    first, second, _ = block.place.areas(block.stream_offset)
    return second if block.metadata_offset == first else first


def write(
    fd: int, block: Superblock, metadata: Metadata | None = None, *, durable: bool = True
) -> Superblock:
    """Write ``block``, with new ``metadata`` if given, as the next one in force; return it.

    With ``durable``, metadata is on stable storage before the slot that points to it is written,
    and the slot before this returns. ``fd`` must not be O_APPEND. Nothing is written from M on.
    Raises ValueError where the metadata does not fit, OSError where writing fails.
    """
    block = dataclasses.replace(block, sequence=block.sequence + 1)
    if metadata is not None:
        raw = _dumped(metadata)
        room = block.place.areas(block.stream_offset)[2] - block.digest_room
        if len(raw) > min(room, MAX_METADATA):
            raise ValueError(
                f"metadata of {len(raw)} bytes does not fit the {min(room, MAX_METADATA)} reserved"
            )
        block = dataclasses.replace(
            block,
            metadata_offset=_copy_offset(block),
            metadata_length=len(raw),
            metadata_sha256=hashlib.sha256(raw).digest(),
        )
        syscalls.write_all(fd, raw, block.metadata_offset)
        if durable:
            os.fdatasync(fd)
    syscalls.write_all(fd, block.pack(), block.place.slot(block.sequence % SLOTS))
    if durable:
        os.fsync(fd)
    return block


def write_twice(fd: int, block: Superblock, metadata: Metadata) -> Superblock:
    """Write ``block`` and ``metadata`` into both slots and both areas, durably; return it.

    Raises as ``write`` does.
    """
    before = block.metadata_length
    block = write(fd, block, metadata)
    block = write(fd, block)  # else the other slot would say what was before, and need its area
    syscalls.write_all(fd, _dumped(metadata).ljust(before, b"\0"), _copy_offset(block))
    os.fdatasync(fd)
    return block


def area_for(metadata: Metadata) -> int:
    """Return how many bytes an area should have for metadata that begin like that."""
    return units.round_up(2 * len(_dumped(metadata)) + _METADATA_GROWS, SLOT_SIZE)


def _dumped(metadata: Metadata) -> bytes:
    # ASCII, so that names which are not UTF-8 (surrogates in Python) survive as escapes.
    return strict_json.dumps(metadata, sort_keys=True).encode("ascii")
