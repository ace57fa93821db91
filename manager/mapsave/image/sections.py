"""Where a device's state ends: QEMU's stream does not say, so the bytes after a footer decide.

A section that holds a device's state has no length. It ends with its footer, five bytes that may
also occur in the state itself (a guest can put anything into the memory of a device). So a
footer counts only where what follows is, by more than its type byte, something that QEMU 10.0
writes after a device (``qemu_savevm_state_setup`` and ``_complete_precopy`` in
``migration/savevm.c``): the next device, the RAM section where devices are saved early, or the
end.
"""

from collections.abc import Container

from mapsave.image import stream_format as fmt
from mapsave.image.cursor import Cursor

# The command that informs a destination that the last phase begins.
SWITCHOVER = bytes([fmt.COMMAND]) + fmt.COMMAND_HEAD.pack(fmt.COMMAND_SWITCHOVER_START, 0)
_SECTION_ID = 5  # bytes of type and section id, with which every section begins
_NUMBERS = 8  # bytes of instance and version, which end a section's head
_VERSION_LIMIT = 1 << 16  # versions of devices are small numbers


def footer(section: int) -> bytes:
    """Return the footer of a section: type byte and section id."""
    return bytes([fmt.SECTION_FOOTER]) + fmt.U32.pack(section)


def ram_part(section: int, kind: int = fmt.SECTION_PART) -> bytes:
    """Return a part of the RAM section whole: pages are never in it, just the end mark."""
    head = bytes([kind]) + fmt.U32.pack(section)
    return head + fmt.U64.pack(fmt.RAM_FLAG_EOS) + footer(section)


def may_follow_device(at: Cursor, seen: Container[int], ram_section: int | None) -> bool:
    """Return whether the bytes at ``at`` can follow a device's footer; stay there.

    ``seen`` are the ids of the sections so far, ``ram_section`` is that of the RAM section if it
    has begun and not ended. Raises TruncatedImage where nothing at all is there.
    """
    kind = at.peek_u8("section type")
    if kind in (fmt.SECTION_FULL, fmt.SECTION_START):
        return _is_head(at, seen)
    if kind in (fmt.SECTION_PART, fmt.SECTION_END):
        return ram_section is not None and at.stands_here(ram_part(ram_section, kind))
    if kind == fmt.COMMAND:
        return at.stands_here(SWITCHOVER)
    return kind == fmt.EOF and _is_end(at)


def _is_head(at: Cursor, seen: Container[int]) -> bool:
    """A new section id, a printable name, a small version; a head cut by the end is none."""
    fixed = at.peek_up_to(_SECTION_ID + 1)
    if len(fixed) <= _SECTION_ID or not fixed[_SECTION_ID]:
        return False
    start = _SECTION_ID + 1
    length = start + fixed[_SECTION_ID] + _NUMBERS
    head = at.peek_up_to(length)
    if len(head) < length or fmt.U32.unpack_from(head, 1)[0] in seen:
        return False
    name = head[start:-_NUMBERS]
    version: int = fmt.U32.unpack_from(head, length - 4)[0]
    return name.isascii() and name.decode().isprintable() and version < _VERSION_LIMIT


def _is_end(at: Cursor) -> bool:
    """The end mark is followed by nothing, or by a JSON description, however damaged its length."""
    rest = at.peek_up_to(7)  # end mark, type, length, "{"
    return len(rest) == 1 or (rest[1] == fmt.VMDESCRIPTION and rest[6:] in (b"{", b""))
