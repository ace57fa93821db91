"""What mapsave itself makes of the images of ``build``."""

import os

from mapsave.image import image, validation

from tests.image import build


def fill(partial: image.Partial) -> None:
    """Write a stream as QEMU does."""
    built = build.Image(offset=partial.block.stream_offset).built()
    os.ftruncate(partial.fd, built.size)
    for at, data in built.pieces:
        if at >= partial.block.stream_offset:
            os.pwrite(partial.fd, data, at)


def validated(built: build.Built) -> validation.Contents:
    with built.opened() as path, image.opened(path) as opened:
        return opened.validate()
