"""The header of libvirt's save images, read as hostile input, and written.

92 bytes in the byte order of the host that saved, then ``data_length`` bytes up to the stream
(libvirt's ``qemu_saveimage.h`` and ``.c``; version 2 since 0.9, sparse since 11.2)::

    0    16   magic: LibvirtQemudPart while it is written, LibvirtQemudSave when complete
    16   4    version, 2
    20   4    data_length: domain XML and its NUL, cookie and its NUL, padding
    24   4    was_running: not 0 where the guest ran when it was saved
    28   4    format of the stream: 6 is sparse, QEMU's mapped-ram
    32   4    offset of the cookie from byte 92; 0 for none
    36   56   zeros

libvirt reads XML and cookie up to their NULs and does not look at the padding; a rewrite of the
XML (``virsh save-image-define``, ``save-image-edit``) keeps ``data_length`` and zeroes the padding.
"""

import dataclasses
import os
import shlex
import struct

from mapsave import errors, units
from mapsave.image import syscalls

SIZE = 92
VERSION = 2
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
SPARSE = FORMATS.index("sparse")
# libvirt's RPC carries strings up to 4 MiB (REMOTE_STRING_MAX), so no domain has longer XML; four
# times that is room for what libvirt adds, and a header that lies costs no more memory.
MAX_TEXT = 16 * units.MIB

_SAVE = b"LibvirtQemudSave"
_PART = b"LibvirtQemudPart"
_FIELDS = struct.Struct("=16s5I56x")
_CHUNK = 64 * units.KIB
_COPY = "was it copied completely? use the original, or a good copy"
_DAMAGED = "the file is damaged, or was not written by libvirt: use a good copy"


@dataclasses.dataclass(frozen=True)
class NewLibvirtHeader:
    """What a new image in libvirt format says: the domain XML (migratable, inactive, secure),
    libvirt's cookie, and whether a restore resumes the guest."""

    xml: str
    cookie: str | None = None
    was_running: bool = False


@dataclasses.dataclass(frozen=True)
class LibvirtHeader:
    """A header as it is in the file. ``cookie_offset`` counts from byte 92, 0 for no cookie;
    ``padding_offset`` from the beginning of the file. With ``is_digested`` the metadata have its
    digest, and it is right."""

    complete: bool
    version: int
    data_length: int
    was_running: bool
    format_number: int
    cookie_offset: int
    xml: str
    cookie: str | None
    padding_offset: int
    is_digested: bool = dataclasses.field(default=False, compare=False)

    @property
    def stream_offset(self) -> int:
        return SIZE + self.data_length

    @property
    def format(self) -> str:
        """The stream's format as ``virsh save --image-format`` calls it."""
        # Version 1 had no format yet: libvirt takes the stream for a raw one.
        return FORMATS[self.format_number] if self.version >= VERSION else "raw"

    def pack(self) -> bytes:
        """Return header, XML and cookie as they are in the file, without the padding."""
        fields = _FIELDS.pack(
            _SAVE if self.complete else _PART,
            self.version,
            self.data_length,
            self.was_running,
            self.format_number,
            self.cookie_offset,
        )
        texts = [self.xml, *([] if self.cookie is None else [self.cookie])]
        return fields + b"".join(text.encode() + b"\0" for text in texts)


def is_one(fd: int) -> bool:
    """Return whether the file begins as an image of libvirt does, complete or not."""
    return os.pread(fd, len(_SAVE), 0) in (_SAVE, _PART)


def read(fd: int) -> LibvirtHeader:
    """Return the header of the file open as ``fd``; its format may be any that libvirt has.

    The file of an incomplete image may be shorter than its ``stream_offset``. Raises NotAnImage,
    TruncatedImage, UnsupportedImage, InvalidImage.
    """
    raw = os.pread(fd, SIZE, 0)
    if not raw.startswith((_SAVE, _PART)):
        raise errors.NotAnImage("the file does not begin with a libvirt image header")
    if len(raw) < SIZE:
        raise errors.TruncatedImage(
            f"the file ends at {len(raw)}, within libvirt's header of {SIZE} bytes", hint=_COPY
        )
    magic, version, data_length, was_running, number, cookie_offset = _FIELDS.unpack(raw)
    _check_version(version)
    if version >= VERSION and number >= len(FORMATS):
        raise errors.UnsupportedImage(
            f"libvirt header: format {number} at offset 28; this mapsave supports formats up to "
            f"{SPARSE}",
            hint="a newer libvirt saved it: try its 'virsh restore', or a newer mapsave",
        )
    complete, stream_offset = magic == _SAVE, SIZE + data_length
    _check_extents(data_length, cookie_offset, os.fstat(fd).st_size if complete else None)
    xml_end = SIZE + cookie_offset if cookie_offset else stream_offset
    xml, padding_offset = _text(fd, "domain XML", SIZE, xml_end)
    cookie = None
    if cookie_offset:
        cookie, padding_offset = _text(fd, "cookie", xml_end, stream_offset)
    return LibvirtHeader(
        complete=complete,
        version=version,
        data_length=data_length,
        was_running=bool(was_running),
        format_number=number,
        cookie_offset=cookie_offset,
        xml=xml,
        cookie=cookie,
        padding_offset=padding_offset,
    )


def _check_version(version: int) -> None:
    if 1 <= version <= VERSION:
        return
    words = f"libvirt header: version {version} at offset 16"
    if 1 <= int.from_bytes(version.to_bytes(4, "little"), "big") <= VERSION:
        raise errors.UnsupportedImage(
            f"{words}: it was saved on a host with the other byte order",
            hint="restore it there: QEMU's bitmaps are in that host's byte order too",
        )
    if version == 0:
        raise errors.InvalidImage(words, hint=_DAMAGED)
    raise errors.UnsupportedImage(
        f"{words}; this mapsave reads up to {VERSION}",
        hint="a newer libvirt saved it: try its 'virsh restore', or a newer mapsave",
    )


def _check_extents(data_length: int, cookie_offset: int, size: int | None) -> None:
    """Check the lengths against each other, and against the file's ``size`` where it is known."""
    if data_length == 0:
        raise errors.InvalidImage("libvirt header: data length 0 at offset 20", hint=_DAMAGED)
    if cookie_offset >= data_length:
        raise errors.InvalidImage(
            f"libvirt header: cookie offset {cookie_offset} at offset 32 is beyond "
            f"the {data_length} bytes of data",
            hint=_DAMAGED,
        )
    if size is not None and size < SIZE + data_length:
        raise errors.TruncatedImage(
            f"libvirt header: data length {data_length} at offset 20, "
            f"but the file has {size} bytes",
            hint=_COPY,
            size=size,
            expected=SIZE + data_length,
        )


def _text(fd: int, what: str, start: int, end: int) -> tuple[str, int]:
    """Return the text at ``start``, and the offset after its NUL, which must lie before ``end``.

    Reads piece by piece, so that memory follows the text and not the length that the header says.
    """
    raw = bytearray()
    limit = min(end, start + MAX_TEXT + 1)
    while start + len(raw) < limit:
        at = start + len(raw)
        piece = os.pread(fd, min(_CHUNK, limit - at), at)
        if not piece:
            raise errors.TruncatedImage(
                f"the file ends at {at}, within the {what} at offset {start}", hint=_COPY
            )
        text, nul, _ = piece.partition(b"\0")
        raw += text
        if nul:
            try:
                return raw.decode(), start + len(raw) + 1
            except UnicodeDecodeError as error:
                raise errors.InvalidImage(
                    f"the {what} is not UTF-8 at offset {start + error.start}", hint=_DAMAGED
                ) from None
    raise errors.InvalidImage(
        f"the {what} at offset {start} has no end before offset {limit}"
        + (f": longer than {MAX_TEXT} bytes" if limit < end else ""),
        hint=_DAMAGED,
    )


def require_sparse(header: LibvirtHeader, path: str) -> None:
    """Raise UnsupportedImage unless the stream of the image at ``path`` is mapped-ram."""
    if header.format != "sparse":
        raise errors.UnsupportedImage(
            f"libvirt saved it in format {header.format!r}"
            + (f", header version {header.version}" if header.version < VERSION else "")
            + "; mapsave reads 'sparse'",
            hint=f"'virsh restore {shlex.quote(path)}' restores it",
        )


def text_length(new: NewLibvirtHeader) -> int:
    """Return the bytes from the beginning of the file to the end of XML and cookie.

    Raises ValueError where one of them cannot be written: too long, a NUL inside, not Unicode.
    """
    texts = [text.encode() for text in (new.xml, new.cookie or "")]
    if not texts[0] or any(b"\0" in text for text in texts):
        raise ValueError("domain XML and cookie must be text without NULs, the XML not empty")
    if max(map(len, texts)) > MAX_TEXT:
        raise ValueError(f"domain XML or cookie of more than {MAX_TEXT} bytes")
    return SIZE + sum(len(text) + 1 for text in texts if text)


def laid_out(new: NewLibvirtHeader, stream_offset: int) -> LibvirtHeader:
    """Return the header of an incomplete sparse image. Raises ValueError where it does not fit."""
    padding_offset = text_length(new)
    if not padding_offset <= stream_offset < SIZE + (1 << 32):
        raise ValueError(f"{padding_offset} bytes of header before a stream at {stream_offset}")
    return LibvirtHeader(
        complete=False,
        version=VERSION,
        data_length=stream_offset - SIZE,
        was_running=new.was_running,
        format_number=SPARSE,
        cookie_offset=len(new.xml.encode()) + 1 if new.cookie else 0,
        xml=new.xml,
        cookie=new.cookie or None,
        padding_offset=padding_offset,
    )


def write(fd: int, header: LibvirtHeader) -> None:
    """Write header, XML and cookie; the padding is left as it is. Raises OSError."""
    syscalls.write_all(fd, header.pack(), 0)


def write_complete(fd: int, header: LibvirtHeader) -> LibvirtHeader:
    """Turn the magic into that of a complete image, durably; return the header as it is then.

    The magic lies in one sector, so it is never half of each. Raises OSError.
    """
    os.pwrite(fd, _SAVE, 0)
    os.fsync(fd)
    return dataclasses.replace(header, complete=True)
