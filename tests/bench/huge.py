"""Write a sparse image of a guest with 1 TiB of RAM: ``python -m tests.bench.huge PATH PATTERN``.

It is run as a process of its own, since it takes much more memory than what is measured with it.
"""

import random
import sys

from tests.image import build

TIB = 1 << 40
_PAGES = TIB // 4096


def sparse() -> bytes:
    """Return the bitmap of a guest that uses a page here and there: one in 4096, by chance."""
    generator = random.Random(1)
    words = bytearray(_PAGES // 8)
    for _ in range(_PAGES // 4096):
        page = generator.randrange(_PAGES)
        words[page >> 3] |= 1 << (page & 7)
    return bytes(words)


def alternating() -> bytes:
    """Return the bitmap with the most runs there can be: every other page is used."""
    return b"\x55" * (_PAGES // 8)


def main() -> None:
    """Write the image; its pages are a hole."""
    path, pattern = sys.argv[1:]
    built = build.Image(blocks=[build.Block("pc.ram", TIB)]).built()
    bitmap = {"sparse": sparse, "alternating": alternating}[pattern]()
    built.patched("block0.bitmap", bitmap).write(path)


if __name__ == "__main__":
    main()
