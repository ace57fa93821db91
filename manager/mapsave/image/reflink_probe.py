"""Try whether files of two directories can share their blocks, with files that have no names."""

import os

from mapsave.image import descriptors, reflink


def probe(one: int, other: int) -> None:
    """Share a block of a file in directory ``one`` with a file in ``other``.

    Raises OSError as ``reflink.share`` does, and where no file can be made.
    """
    with descriptors.unnamed(one) as source, descriptors.unnamed(other) as target:
        block = reflink.block_size(source)
        os.pwrite(source, bytes(block), 0)
        reflink.share(source, 0, block, target, 0)
