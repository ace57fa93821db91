"""An image cut anywhere is refused, whoever wrote it."""

import os
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import bitmaps, image, validation

from tests.image import build
from tests.image.conftest import Real
from tests.image.fuzz import boundaries, places


def assert_every_cut_refused(path: Path, cuts: list[int], *, complete_at: int) -> None:
    """Cut the file shorter and shorter: as an image, and as a stream that knows no length."""
    for size in reversed(cuts):
        os.truncate(path, size)
        with pytest.raises(errors.InvalidImage), image.opened(path) as opened:
            opened.validate()
        if size == complete_at:
            continue
        with path.open("rb") as file, pytest.raises(errors.InvalidImage) as caught:
            validation.validate_stream(file.fileno(), build.M, size)
        assert isinstance(caught.value, errors.TruncatedImage), f"cut at {size}: {caught.value}"


def test_synthetic_image_cut_at_every_boundary(tmp_path: Path) -> None:
    built = build.Image().built()
    path = tmp_path / "image"
    built.write(path)
    # Behind the end mark a stream without description ends: only the superblock knows better.
    complete = built.fields["description.type"][0]
    assert_every_cut_refused(path, places(built.boundaries(), built.size), complete_at=complete)


def test_real_image_cut_at_every_boundary(real: Real, tmp_path: Path) -> None:
    path = real.copy(tmp_path / "image")
    with image.opened(path) as opened:
        stream = opened.validate().stream
    for size in reversed(places([*boundaries(stream), 4096, 8192], stream.end)):
        os.truncate(path, size)
        with pytest.raises(errors.InvalidImage), image.opened(path) as opened:
            opened.validate()
        if size == stream.description_offset - 5:
            continue
        with path.open("rb") as file, pytest.raises(errors.TruncatedImage):
            validation.validate_stream(file.fileno(), build.MIB, size)


def test_every_byte_of_the_end_counts(tmp_path: Path) -> None:
    built = build.Image().built()
    path = tmp_path / "image"
    built.write(path)
    start = built.fields["setup.mark"][0]
    complete = built.fields["description.type"][0]
    assert_every_cut_refused(path, list(range(start, built.size)), complete_at=complete)


def test_file_that_has_grown_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    build.Image().built().write(path)
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(errors.InvalidImage, match="1 more than"), image.opened(path):
        pass


def test_bitmap_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    built = build.Image().built()
    built.write(path)
    with image.opened(path) as opened:
        contents = opened.validate()
        block = contents.stream.blocks[1]
        for left in (3, 0):
            os.truncate(path, block.bitmap_offset + left)
            with pytest.raises(errors.TruncatedImage):
                bitmaps.run_histogram(opened.fd, contents.stream)
            with pytest.raises(errors.TruncatedImage):
                bitmaps.used_pages(opened.fd, block)
