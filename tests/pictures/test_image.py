"""The picture of an image shows which pages are used."""

import itertools
import os
import random
import re
import time
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import cells, image
from mapsave.operations import pictures
from mapsave.pictures import image as image_picture
from mapsave.pictures import squares, svg

from tests.image import build
from tests.pictures import read

GIB = 1 << 30


def drawn(*blocks: build.Block) -> str:
    with build.Image(blocks=list(blocks)).built().opened() as path:
        return pictures.of_image(path)


@pytest.mark.parametrize("order", range(squares.LARGEST_ORDER + 1))
def test_the_curve_goes_through_each_cell_once_and_never_jumps(order: int) -> None:
    side = 1 << order
    places = squares.places(order)
    assert sorted(places) == list(range(side * side))
    points = [divmod(place, side) for place in places]
    steps = itertools.pairwise(points)
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in steps)


def test_each_page_of_a_small_block_has_its_cell() -> None:
    used = (0, 1, 2, 64, 255)
    ram, rom = read.squares(
        drawn(build.Block("ram", 1 << 20, used), build.Block("rom", 40960, (9,)))
    )
    assert (ram.name, ram.side) == ("ram", 16)
    assert [at for at, kind in enumerate(ram.cells) if kind == "used4"] == list(used)
    assert set(ram.cells) == {"zero", "used4"}
    assert (rom.name, rom.side) == ("rom", 4)
    assert rom.cells == ["zero"] * 9 + ["used4"] + ["beyond"] * 6


def test_a_cell_is_the_darker_the_more_of_its_pages_are_used() -> None:
    """Of 3 GiB a cell has 48 pages, and the last third of the square is none of it."""
    share = {0: 1, 1: 12, 2: 13, 3: 24, 4: 36, 5: 37, 6: 48}
    used = tuple(cell * 48 + page for cell, pages in share.items() for page in range(pages))
    (ram,) = read.squares(drawn(build.Block("ram", 3 * GIB, used)))
    assert ram.side == 128
    assert [kind.removeprefix("used") for kind in ram.cells[:8]] == [*"1122344", "zero"]
    assert set(ram.cells[8:]) == {"zero"}
    assert len(ram.cells) == 3 * GIB // 4096 // 48


def test_what_is_counted_is_what_the_bitmap_has_across_its_chunks() -> None:
    """Cells that do not end where the bitmap's chunks do."""
    pages = 5 * (1 << 19) + 12345
    used = sorted(random.Random(7).sample(range(pages), 4000))
    one = build.Image(blocks=[build.Block("ram", pages * 4096, tuple(used))])
    with one.built().opened() as path, image.opened(path) as opened:
        (block,) = opened.validate().stream.blocks
        found = cells.of_block(opened.fd, block, 7)
    expected = [0] * len(found.used)
    for page in used:
        expected[page // found.cell_pages] += 1
    assert list(found.used) == expected


def test_a_picture_of_64_gib_is_small_and_made_at_once(tmp_path: Path) -> None:
    """Two nodes, each cell of another shade than its neighbours, which takes the most text."""
    path = tmp_path / "image"
    nodes = [build.Block(f"node{number}", 32 * GIB, (0,)) for number in range(2)]
    build.Image(blocks=nodes).built().write(path)
    with image.opened(path) as opened:
        blocks = opened.validate().stream.blocks
    choose = random.Random(3)
    with open(path, "r+b") as file:
        for block in blocks:
            file.seek(block.bitmap_offset)
            for _ in range(block.bitmap_bytes // 64):
                file.write(choose.choice((b"\0", b"\1", b"\x0f", b"\x3f", b"\xff")) * 64)
    begun = time.process_time()
    picture = pictures.of_image(str(path))
    assert time.process_time() - begun < 20
    assert 100_000 < len(picture.encode()) < 300_000
    assert [each.side for each in read.squares(picture)] == [128, 128]


def test_blocks_that_are_left_out_are_said_to_be() -> None:
    small = [build.Block(f"rom{number}", 4096 * (1 + number), (0,)) for number in range(20)]
    picture = drawn(build.Block("ram", 1 << 20, (1,)), *small)
    shown = [each.name for each in read.squares(picture)]
    assert len(shown) == image_picture.MOST_BLOCKS
    assert shown[:2] == ["ram", "rom19"]
    # rom0 to rom8, of 1 to 9 pages.
    assert "and 9 smaller RAM blocks, 180.0 KiB together" in read.texts(picture)


def test_thousands_of_blocks_share_the_room() -> None:
    found = cells.orders([1 << 24] * 40, squares.LARGEST_ORDER, image_picture.MOST_CELLS)
    assert len(set(found)) == 1
    assert 40 << 2 * found[0] <= image_picture.MOST_CELLS < 40 << 2 * found[0] + 2


def test_runs_are_shown_by_their_length() -> None:
    words = read.texts(drawn(build.Block("ram", 1 << 20, (0, 1, 2, 64, 255))))
    at = words.index("Runs of used pages, by their length")
    assert words[at + 1 :] == ["1", "2", "2-3", "1"]


def test_names_that_are_no_xml_are_shown_escaped() -> None:
    made = build.Image(
        [build.Block("<a>&'\"", 4096)], metadata=rb'{"guest": {"name": "\u0001<\udc80"}}'
    )
    with made.built().opened() as path:
        picture = pictures.of_image(path)
    assert "<a>&'\"" in read.texts(picture)
    assert read.squares(picture)[0].name == "<a>&'\""
    assert "guest \\x01<\\udc80" in read.texts(picture)


def test_both_grounds_have_each_colour() -> None:
    light, found, dark = drawn(build.Block("ram", 4096)).partition("prefers-color-scheme: dark")
    assert found
    colours = [
        re.findall(r"^(\.\w+) { (?:fill|stroke): (#\w+)", text, re.M) for text in (light, dark)
    ]
    assert [name for name, _ in colours[0]] == [name for name, _ in colours[1]]
    for lower, upper in zip(*colours, strict=True):
        assert lower[1] != upper[1] or lower[0] == ".axis"
    assert len(colours[0]) > 3 * svg.LEVELS


def test_an_unfinished_image_has_none() -> None:
    built = build.Image(header={"state": build.PARTIAL}).built()
    with built.opened() as path, pytest.raises(errors.PartialImage):
        pictures.of_image(path)


def test_an_image_that_shrinks_meanwhile_is_truncated() -> None:
    with build.Image().built().opened() as path, image.opened(path) as opened:
        (block, *_) = opened.validate().stream.blocks
        os.truncate(path, block.bitmap_offset + 1)
        with pytest.raises(errors.TruncatedImage):
            cells.of_block(opened.fd, block, 2)
