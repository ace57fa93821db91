"""Write an image as a tar: read once, in order, and compared with its digests meanwhile."""

import dataclasses
import time
from collections.abc import Callable

from mapsave import errors
from mapsave.archive import sparse_tar
from mapsave.archive.coding import Sink
from mapsave.archive.sparse_tar import Extents, Head, Layout
from mapsave.image import holes, piece_reader
from mapsave.image.data_digests import Digests, Table
from mapsave.image.piece_reader import PIECE, Note


@dataclasses.dataclass(frozen=True)
class Image:
    """The file of an image that is open as ``fd``, of ``size`` bytes.

    Its header has ``header`` bytes; ``check`` is called when they are read, and raises where they
    were changed in the meantime. ``known`` are the digests that it has of itself.
    """

    fd: int
    name: str
    size: int
    modified: int
    header: int
    known: Digests | None
    check: Callable[[], None]


def write(image: Image, layout: Layout, out: Sink, note: Note) -> None:
    """Write the tar of an image. ``note`` is as for ``piece_reader.read``.

    Memory does not depend on the image, but for 16 bytes for each MiB of it. Raises DataDamaged,
    Busy where the image was changed, TruncatedImage, OSError, and what ``out`` raises.
    """
    head = Head(image.name, image.size, layout.stored, image.modified)
    out.write(head.pack())
    length = 0
    for piece in sparse_tar.map_of(image.fd, image.size, layout):
        note(0)
        length += len(piece)
        out.write(piece)
    if length != layout.map_bytes:
        raise changed(image.name)
    table = _write_data(image, layout, out, note)
    out.write(sparse_tar.padding(layout.data_bytes))
    manifest = Digests(0, image.size, int(time.time()), table).pack()
    out.write(head.pack_manifest(len(manifest)))
    out.write(manifest)
    out.write(sparse_tar.padding(len(manifest)))
    out.write(sparse_tar.END)


def _write_data(image: Image, layout: Layout, out: Sink, note: Note) -> bytes:
    data = _Data(image, out)
    piece_reader.read(image.fd, 0, image.size, data.put, note, in_order=True)
    if (data.extents.data_bytes, data.extents.digest()) != (layout.data_bytes, layout.digest):
        raise changed(image.name)
    if image.known is not None and (places := image.known.differing(bytes(data.own.digests))):
        raise _damaged(image.name, *places[0])
    return bytes(data.table.digests)


def changed(name: str) -> errors.Busy:
    """Return the error for an image that was written to while it was read."""
    return errors.Busy(
        f"the image {name!r} was changed while it was exported: it was restored, or digests were "
        "added to it",
        hint="export it again",
    )


def _damaged(name: str, start: int, end: int) -> errors.DataDamaged:
    return errors.DataDamaged(
        f"the image {name!r} is damaged, and was not exported: bytes {start} to {end} of the file "
        "are not what they were",
        hint="'mapsave verify --data' lists all that differs; restore from another copy",
    )


class _Data:
    """Writes the data of pieces, and takes their digests.

    ``table`` has those of the whole file, ``own`` those of what the image's own digests cover.
    """

    def __init__(self, image: Image, out: Sink) -> None:
        known = image.known
        self.table = Table(0, image.size)
        self.own = Table(0, 0) if known is None else Table(known.begin, known.end)
        self.extents = Extents()
        self._image = image
        self._out = out
        self._is_checked = False

    def put(self, number: int, data: memoryview) -> None:
        """Write a piece; they come in order. Raises DataDamaged, Busy, and what writing raises."""
        image, low = self._image, number * PIECE
        end = low + len(data)
        digest = self.table.put(number, data)
        if not self._is_checked and end >= image.header:
            image.check()
            self._is_checked = True
        if (known := image.known) is not None and end > known.begin:
            if low < known.begin:
                digest = self.own.of(data[known.begin - low :])
            self.own.note(number, digest)
            if digest != known.digest(number):
                raise _damaged(image.name, max(low, known.begin), end)
        for first, last in holes.extents(image.fd, low, end):
            self.extents.add(first, last)
            with data[first - low : last - low] as part:
                self._out.write(part)
