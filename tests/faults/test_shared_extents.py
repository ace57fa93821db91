"""Which parts of an image another file shares, on a real file system that reflinks."""

import fcntl
import os
from pathlib import Path

import pytest
from mapsave.image import extents, image
from mapsave.operations import pictures

from tests.image import build
from tests.kit import storage
from tests.pictures import read

MIB = 1 << 20
_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D


@pytest.mark.root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_is_cloned_is_shared(kind: storage.Kind, tmp_path: Path) -> None:
    with storage.loop_filesystem(kind, storage.SMALLEST[kind], tmp_path) as place:
        first, second = place / "first", place / "second"
        first.write_bytes(os.urandom(4 * MIB))
        with first.open("rb") as source, second.open("w+b") as target:
            target.write(os.urandom(8 * MIB))
            target.flush()
            os.fsync(target.fileno())
            assert extents.shared(target.fileno(), 0, 8 * MIB) == []
            # From 1 to 3 MiB of the first to 2 to 4 MiB of the second.
            asked = b"".join(
                number.to_bytes(8, "little") for number in (source.fileno(), MIB, 2 * MIB, 2 * MIB)
            )
            fcntl.ioctl(target.fileno(), _FICLONERANGE, asked)
            os.fsync(target.fileno())
            found = extents.shared(target.fileno(), 0, 8 * MIB)
            assert found is not None
            assert (found[0][0], found[-1][1]) == (2 * MIB, 4 * MIB)
            assert sum(end - start for start, end in found) == 2 * MIB
            assert extents.shared(target.fileno(), 3 * MIB, 8 * MIB) == [(3 * MIB, 4 * MIB)]


@pytest.mark.root
def test_the_picture_of_an_image_that_was_cloned(tmp_path: Path) -> None:
    """Half of the used pages are cloned: an image of two, of which one is not."""
    used = (0, 1, 2, 3, 200, 201, 202, 203)
    built = build.Image([build.Block("ram", MIB, used)]).built()
    with storage.loop_filesystem("xfs", storage.SMALLEST["xfs"], tmp_path) as place:
        first, second = place / "first", place / "second"
        built.write(first)
        with image.opened(first) as opened:
            pages = opened.validate().stream.blocks[0].pages_offset
        with first.open("r+b") as file:
            for page in used:
                os.pwrite(file.fileno(), b"x" * 4096, pages + page * 4096)
            os.fsync(file.fileno())
            with second.open("w+b") as target:
                fcntl.ioctl(target.fileno(), _FICLONE, file.fileno())
            os.pwrite(file.fileno(), b"y" * 4 * 4096, pages + 200 * 4096)
            os.fsync(file.fileno())
        picture = pictures.of_image(str(first))
    (square,) = read.squares(picture)
    shades = {at: kind for at, kind in enumerate(square.cells) if kind != "zero"}
    assert shades == {**dict.fromkeys(used[:4], "shared4"), **dict.fromkeys(used[4:], "used4")}
    assert "shared with another file" in read.texts(picture)


@pytest.mark.root
def test_a_file_system_that_does_not_say(tmp_path: Path) -> None:
    with storage.tmpfs(MIB, tmp_path) as place, (place / "file").open("wb") as file:
        file.write(b"x")
        file.flush()
        assert extents.shared(file.fileno(), 0, 1) is None
