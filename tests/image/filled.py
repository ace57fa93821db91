"""Images whose pages have contents."""

import os
import random

from mapsave.image.image import Partial

from tests.image import build

BLOCKS = [
    build.Block("pc.ram", 4 * build.MIB, (*range(3, 40), *range(256, 300), 800, 1023)),
    build.Block("/rom@etc/x", 40960, (1, 9)),
]


def fill(partial: Partial, seed: int) -> None:
    """Write a stream as QEMU does, the pages that are used with contents."""
    made = build.Image(offset=partial.block.stream_offset, blocks=BLOCKS).built()
    os.ftruncate(partial.fd, made.size)
    for at, data in made.pieces:
        if at >= partial.block.stream_offset:
            os.pwrite(partial.fd, data, at)
    contents = random.Random(seed)
    for number, block in enumerate(BLOCKS):
        begin = made.fields[f"block{number}.pages"][0]
        for page in block.used:
            os.pwrite(partial.fd, contents.randbytes(4096), begin + page * 4096)
