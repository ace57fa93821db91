"""The stub: a stream without the pages that a destination maps from the image itself.

In a mapped-ram image the pages of a RAM block lie as in a RAM file: page n at ``pages_offset`` +
n × page size, holes being zeros. So a destination may map them, privately, where it would read
them. QEMU writes only pages whose bit is set (10.0, ``read_ramblock_mapped_ram``): the stub is the
same stream with the bits of those blocks cleared, and has the other blocks and the devices.
"""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Sequence

from mapsave import instant_names
from mapsave.image import descriptors, stream_parts
from mapsave.image.mapped_ram import RamBlock, Stream

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A RAM block that the destination maps from the image.

    ``stale``: runs of pages (first, number) that are zeros, though the file has data in their
    place: a live save has written them before they became zeros. With ``has_alias`` the
    destination calls the block so (``instant_names.py``).
    """

    block: RamBlock
    stale: tuple[tuple[int, int], ...] = ()
    has_alias: bool = False


@contextlib.contextmanager
def made(fd: int, stream: Stream, mapped: Sequence[Mapped]) -> Iterator[int]:
    """Make the stub for the image ``fd`` in memory, sealed.

    Its stream begins where the image's does. It is as long as the image, but sparse: 1 to 2 MiB for
    most guests. Stale pages have set bits and holes in their place, so that QEMU writes zeros.
    Raises TruncatedImage, OSError.
    """
    by_name = {each.block.name: each for each in mapped}
    parts = stream_parts.take_apart(fd, stream)
    blocks = tuple(_called(block, by_name.get(block.name)) for block in parts.blocks)
    layout = stream_parts.put_together(dataclasses.replace(parts, blocks=blocks), stream.offset)
    made = os.memfd_create("mapsave-stub", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with descriptors.closing(made):
        stream_parts.write(made, layout)
        for block, to in zip(stream.blocks, layout.blocks, strict=True):
            if (found := by_name.get(block.name)) is None:
                stream_parts.copy_block(fd, block, made, to)
            else:
                stream_parts.mark_used(made, to, found.stale)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
        yield made


def _called(block: RamBlock, mapped: Mapped | None) -> RamBlock:
    """Return the block by the name that the destination has for it."""
    if mapped is None or not mapped.has_alias:
        return block
    return dataclasses.replace(block, name=instant_names.alias(block.name))
