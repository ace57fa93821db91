"""Which pages differ: two images against a plain comparison, and an image against a guest."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import bitmaps
from mapsave.operations import diff

from tests.image import build
from tests.kit import cli, emulated, qmp, ram
from tests.pictures import read

PAGE = 4096
MANY = settings(max_examples=60, deadline=None)
# Contents of a page: not used; used, but zero; not used, yet the file has something there; others.
UNUSED, ZERO, STALE = -1, 0, -2
PAGES = st.lists(st.sampled_from((UNUSED, ZERO, STALE, 1, 2)), min_size=1, max_size=600)


def content(kind: int) -> bytes:
    """Return what the file has there."""
    return bytes(PAGE) if kind in (UNUSED, ZERO) else bytes(PAGE - 1) + bytes([abs(kind)])


def seen(kind: int) -> bytes:
    """Return what the guest would have there."""
    return bytes(PAGE) if kind == STALE else content(kind)


@contextmanager
def image(
    pages: dict[int, int], length: int, name: str = "ram", state: bytes = b"device"
) -> Iterator[str]:
    """Yield the path of an image with one block: pages by their numbers, all others unused."""
    used = tuple(page for page, kind in pages.items() if kind not in (UNUSED, STALE))
    made = build.Image(
        blocks=[build.Block(name, length * PAGE, used)],
        devices=[build.Device("globalstate", 3, b"s"), build.Device("cpu", 4, state)],
    )
    with made.built().opened() as path:
        place = _pages_offset(path)
        with open(path, "r+b") as file:
            for page, kind in pages.items():
                if kind not in (UNUSED, ZERO):
                    os.pwrite(file.fileno(), content(kind), place + page * PAGE)
        yield path


def _pages_offset(path: str) -> int:
    from mapsave.image import image as images

    with images.opened(path) as opened:
        return opened.validate().stream.blocks[0].pages_offset


def ranges_of(found: diff.Found) -> list[tuple[int, int]]:
    (block,) = found.difference["ram_blocks"]
    return [(each["address"] // PAGE, each["pages"]) for each in block["ranges"]]


def plain(differing: list[int]) -> list[tuple[int, int]]:
    """Return pages in ranges."""
    found: list[tuple[int, int]] = []
    for page in differing:
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found


@MANY
@given(PAGES, st.randoms(use_true_random=False))
def test_against_a_plain_comparison(pages: list[int], change: random.Random) -> None:
    others = [
        change.choice((UNUSED, ZERO, STALE, 1, 2)) if change.random() < 0.3 else kind
        for kind in pages
    ]
    with ExitStack() as stack:
        one = stack.enter_context(image(dict(enumerate(pages)), len(pages)))
        other = stack.enter_context(image(dict(enumerate(others)), len(pages)))
        found = diff.images(one, other)
    expected = [at for at in range(len(pages)) if seen(pages[at]) != seen(others[at])]
    assert ranges_of(found) == plain(expected)
    assert found.difference["differing_pages"] == len(expected)
    (square,) = read.squares(found.drawn())
    cells = [kind.startswith("differs") for kind in square.cells]
    assert [at for at, differs in enumerate(cells) if differs] == expected


def test_ranges_go_on_over_the_windows_of_the_bitmap() -> None:
    border = bitmaps.CHUNK_PAGES
    pages = {border - 2: 1, border - 1: 1, border: 1, 2 * border - 1: 1, 2 * border + 5: 1}
    with image(pages, 2 * border + 9) as one, image({}, 2 * border + 9) as other:
        found = diff.images(one, other)
    assert ranges_of(found) == [(border - 2, 3), (2 * border - 1, 1), (2 * border + 5, 1)]


def test_more_ranges_than_are_listed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "MOST_RANGES", 2)
    border = bitmaps.CHUNK_PAGES
    pages = dict.fromkeys((3, 5, border - 1, border, border + 2), 1)
    with image(pages, border + 9) as one, image({}, border + 9) as other:
        found = diff.images(one, other)
    assert ranges_of(found) == [(3, 1), (5, 1)]
    (block,) = found.difference["ram_blocks"]
    assert (block["differing_pages"], block["ranges_left_out"]) == (5, 2)


def test_blocks_and_devices_that_only_one_side_has() -> None:
    with image({0: 1}, 8) as one, image({0: 1}, 8, name="other", state=b"x") as other:
        found = diff.images(one, other).difference
    assert (found["only_in_one"], found["only_in_other"]) == (["ram"], ["other"])
    assert (found["ram_blocks"], found["devices"]) == ([], ["cpu"])
    with image({0: 1}, 8) as one, image({0: 1}, 9) as other:
        found = diff.images(one, other).difference
    assert (found["only_in_one"], found["only_in_other"]) == (["ram"], ["ram"])
    with image({0: 1}, 8) as one, image({0: 1}, 8) as other:
        assert diff.images(one, other).difference["devices"] == []


def test_pages_of_other_sizes_are_refused() -> None:
    large = build.Image([build.Block("ram", 1 << 20, (), 8192)], machine=b"niagara")
    with (
        image({}, 256) as one,
        large.built().opened() as other,
        pytest.raises(errors.Unsupported, match="8192"),
    ):
        diff.images(one, other)


def test_an_image_and_its_guest_that_goes_on(site: cli.Site, tmp_path: Path) -> None:
    with emulated.guest(site, "web") as socket:
        site.run("save", "web", "-o", "web.mapsave", "--then", "resume", check=0)
        same = site.run("diff", "web.mapsave", "web", "--json", check=0).json()
        assert (same["differing_pages"], same["run_state"]) == (0, "running")
        with qmp.connect(socket) as client:
            memory = ram.LiveRam(client.peer_pid(), client)
            name = memory.largest()
            before = memory.read(name)
            changed = bytes([before[5 * PAGE] ^ 1])
            memory.write(name, 5 * PAGE, changed + before[5 * PAGE + 1 : 7 * PAGE])
        site.run("save", "web", "-o", "later.mapsave", "--then", "resume", check=0)
        for other in ("web", "later.mapsave"):
            found = site.run("diff", "web.mapsave", other, "--json", check=0).json()
            (block,) = (each for each in found["ram_blocks"] if each["differing_pages"])
            assert block["ranges"] == [{"address": 5 * PAGE, "pages": 1}]
        done = site.run("diff", "web.mapsave", "web", "--progress", "json", check=0)
        assert "1 of 2048 pages differ, 4.0 KiB" in done.stdout
        assert "0x5000" in done.stdout
        last = json.loads(done.stderr.splitlines()[-1])
        assert last["done_bytes"] == last["total_bytes"] == 2048 * PAGE
        file = tmp_path / "diff.svg"
        site.run("diff", "web.mapsave", "later.mapsave", "--picture", file, check=0)
        (square,) = read.squares(file.read_text())
        assert [kind for kind in square.cells if kind.startswith("differs")] == ["differs4"]
    assert "[guest.unknown]" in site.run("diff", "web.mapsave", "wep", check=2).stderr
    assert "[image.not_found]" in site.run("diff", "wep.mapsave", "web.mapsave", check=2).stderr
