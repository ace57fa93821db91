"""Firmware of guests whose memory is a shared file: it writes to random pages, or does nothing.

After each ``EACH`` writes it says a dot, so how fast it writes can be seen from outside.
"""

import struct
from pathlib import Path

from tests.bench import walker

EACH = 1 << 16
FIRST = 16 << 20  # the first byte that it writes to
_MOST = 1 << 28  # bytes that it writes to
# Pages by a linear congruential generator, of which the upper bits are taken (Numerical Recipes).
_BEGIN = bytes.fromhex(
    "66b810008ed88ec08ed08ee08ee8"  # ds, es, ss, fs, gs: 0x10, or KVM emulates what follows
    "ba02040000"  # mov edx, 0x402
    "be01000000"  # mov esi, 1
    "e9a3000000"  # jmp to the table's place
)
_WRITES = (
    "b900000100"  # dots: mov ecx, EACH
    "69f60d661900"  # write: imul esi, esi, 1664525
    "81c65ff36e3c"  # add esi, 1013904223
    "89f7"  # mov edi, esi
    "c1ef{:02x}"  # shr edi, 32 - bits
    "81e7{}"  # and edi, the mask of a page in the range
    "81c7{}"  # add edi, FIRST
    "ff07"  # inc dword [edi]
    "49"  # dec ecx
    "75de"  # jnz write
    "b02eee"  # out dx, '.'
    "ebd4"  # jmp dots
)
_HALT = "f4ebfd"  # hlt


def span(size: int) -> int:
    """Return how many bytes of a guest's memory, of ``size``, it writes to: a power of two."""
    return min(_MOST, 1 << ((size - FIRST).bit_length() - 1))


def firmware(path: Path, size: int, *, writes: bool) -> Path:
    """Make a firmware for a guest with ``size`` bytes of memory."""
    wide = span(size)
    numbers = (struct.pack("<I", each).hex() for each in (wide - walker.PAGE, FIRST))
    loop = _WRITES.format(32 - (wide.bit_length() - 1), *numbers) if writes else _HALT
    return walker.assembled(path, _BEGIN, bytes.fromhex(loop))


def written(said: Path) -> int:
    """Return how often it has written, by what it has said."""
    return said.stat().st_size * EACH
