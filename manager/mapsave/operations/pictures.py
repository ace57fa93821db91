"""Pictures of images: what is looked up for them. The drawing is in ``pictures/``."""

import datetime

from mapsave import units
from mapsave.image import bitmaps, cells, descriptors, image
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.pictures import image as image_picture
from mapsave.pictures import squares


def of_image(path: str) -> str:
    """Return the picture of the image at ``path``, as SVG. At most a second for 64 GiB of RAM.

    Raises PartialImage for one whose save has not finished, and as ``inspect.inspect`` does.
    """
    with image.opened(path) as opened:
        contents = opened.validate()
        stream = contents.stream
        blocks = cells.drawn_blocks(stream, image_picture.MOST_BLOCKS)
        orders = cells.orders(
            [block.pages for block in blocks], squares.LARGEST_ORDER, image_picture.MOST_CELLS
        )
        with descriptors.reading(opened.path):
            histogram = bitmaps.run_histogram(opened.fd, stream)
            drawn = [
                cells.of_block(opened.fd, block, order)
                for block, order in zip(blocks, orders, strict=True)
            ]
        left_out = stream.ram_bytes - sum(block.used_length for block in blocks)
        return image_picture.drawn(
            image_picture.Shown(
                title=opened.path.rpartition("/")[2],
                lines=_lines(opened, contents),
                blocks=drawn,
                runs=[
                    (1 << power, (2 << power) - 1, count)
                    for power, count in enumerate(histogram.runs)
                    if count
                ],
                left_out=(len(stream.blocks) - len(blocks), left_out),
            )
        )


def _lines(opened: Image, contents: Contents) -> list[str]:
    known = opened.metadata
    guest = known.get("guest", {}).get("name")
    started = known.get("started")
    when = datetime.datetime.fromisoformat(started) if started else None
    saved = f", saved {units.format_time(when)}" if when else ""
    size = units.format_size
    return [
        f"guest {guest}{saved}",
        f"RAM {size(contents.stream.ram_bytes)}, {size(contents.data_bytes)} not zero; "
        f"file {size(opened.size)}, {size(opened.allocated)} on disk",
    ]
