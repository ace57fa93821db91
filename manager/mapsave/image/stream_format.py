"""The constants of QEMU's migration stream in a mapped-ram file: what reader and writer share.

All integers of the stream are big-endian; the page bitmaps alone are native words, so an image is
tied to the byte order of its host. All file offsets stored in the stream are absolute.

Sources: QEMU's ``docs/devel/migration/mapped-ram.rst``, ``migration/savevm.h``, ``migration/ram.c``
and ``migration/vmstate.c`` of 10.0.
"""

import struct

MAGIC = 0x5145564D  # "QEVM"
VERSION = 3
HEADER = struct.Struct(">II")  # magic, version

# Section types, one byte each (migration/savevm.h).
EOF = 0x00
SECTION_START = 0x01
SECTION_PART = 0x02
SECTION_END = 0x03
SECTION_FULL = 0x04
SUBSECTION = 0x05
VMDESCRIPTION = 0x06
CONFIGURATION = 0x07
COMMAND = 0x08
SECTION_FOOTER = 0x7E

COMMAND_HEAD = struct.Struct(">HH")  # command, length of its arguments in bytes
COMMAND_SWITCHOVER_START = 0x000B  # machine types of 10.0 and later

U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")

# Flags in the low bits of the page-aligned 64-bit words of the RAM section (migration/ram.c).
RAM_FLAG_ZERO = 0x02
RAM_FLAG_MEM_SIZE = 0x04
RAM_FLAG_PAGE = 0x08
RAM_FLAG_EOS = 0x10
RAM_FLAG_CONTINUE = 0x20  # the page is of the same block as the one before
RAM_FLAG_MASK = 0xFFF
RAM_SECTION = "ram"
RAM_VERSION = 4

# MappedRamHeader, packed: version, page size, offset of the bitmap, offset of the pages.
MAPPED_RAM_HEADER = struct.Struct(">IQQQ")
MAPPED_RAM_VERSION = 1
PAGES_ALIGNMENT = 1 << 20  # pages of a RAM block start at the next absolute multiple of 1 MiB

CAPABILITY_MAPPED_RAM = "mapped-ram"
CAPABILITY_IGNORE_SHARED = "x-ignore-shared"
SUBSECTION_CAPABILITIES = "configuration/capabilities"
SUBSECTION_PAGE_BITS = "configuration/target-page-bits"
SUBSECTION_UUID = "configuration/uuid"


def bitmap_bytes(used_length: int, page_size: int) -> int:
    """Return the bytes of the page bitmap of a RAM block: whole 64-bit words, one bit a page."""
    pages = -(-used_length // page_size)
    return 8 * (-(-pages // 64))


def counted(text: str) -> bytes:
    """Return ``text`` after its length in one byte, as QEMU writes names."""
    raw = text.encode()
    return bytes([len(raw)]) + raw
