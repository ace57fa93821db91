"""An image in libvirt format, to be damaged."""

import os
import struct
from pathlib import Path

# The header of libvirt's images: manager/mapsave/image/libvirt_header.py.
_HEADER = 92
_VERSION, _DATA_LENGTH, _FORMAT, _COOKIE_OFFSET = 16, 20, 28, 32


class Victim:
    """An image to be damaged: ``number`` and ``data`` write to it, ``xml`` replaces its XML."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            (self.length,) = struct.unpack_from("=I", file.read(_HEADER), _DATA_LENGTH)

    def data(self, offset: int, content: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def number(self, offset: int, value: int) -> None:
        self.data(offset, struct.pack("=I", value))

    def xml(self, content: str | bytes) -> None:
        raw = content.encode() if isinstance(content, str) else content
        assert len(raw) < self.length
        self.number(_COOKIE_OFFSET, 0)
        self.data(_HEADER, raw + bytes(self.length - len(raw)))

    def cookie(self, content: str | bytes) -> None:
        raw = content.encode() if isinstance(content, str) else content
        with self.path.open("rb") as file:
            (offset,) = struct.unpack_from("=I", file.read(_HEADER), _COOKIE_OFFSET)
        assert offset and offset + len(raw) < self.length
        self.data(_HEADER + offset, raw + bytes(self.length - offset - len(raw)))

    def cut(self, size: int) -> None:
        os.truncate(self.path, size)
