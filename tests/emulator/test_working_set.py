"""What a guest has touched of its image is known at the next restore, and read before it asks."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import config, errors
from mapsave.image import image, read_ahead, working_set
from mapsave.operations import warm, working_sets

from tests.kit import cache, cli, emulated, need, processes, qmp, wait

MIB = 1 << 20
PAGE = cache.PAGE


@contextlib.contextmanager
def restored(site: cli.Site, *options: str) -> Iterator[dict[str, Any]]:
    """Restore the image ``it`` with its RAM mapped; the guest ends at the end."""
    words = ("restore", "it", "--again", "--instant", "on", "--json", *options)
    try:
        yield site.run(*words, check=0).json()
    finally:
        emulated.end(emulated.socket_of(site, "web"))


@pytest.fixture
def path(site: cli.Site) -> Iterator[Path]:
    """The image ``it`` of a guest of 16 MiB, which is not there any more."""
    site.settings["launch_environment"] = ["PATH", processes.MARK, "PYTHONPATH"]
    with emulated.guest(site, "web", size=16 * MIB, paused=True, pattern="fragmented"):
        site.run("save", "web", "-o", "it", check=0)
        yield site.images / "it"


def touch(site: cli.Site, at: int, size: int, directory: Path) -> None:
    """Have the guest read its memory from ``at`` on."""
    with qmp.connect(emulated.socket_of(site, "web")) as client:
        client.execute("pmemsave", val=at, size=size, filename=str(directory / "read"))


async def test_warming_that_stands_still_ends(
    site: cli.Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a time limit of its own: its storage hangs."""
    site.settings["restore"] = {"stall": "100ms"}
    site.write()
    may_end = threading.Event()
    monkeypatch.setattr(read_ahead.Reader, "read", lambda *_, **__: may_end.wait())
    try:
        with pytest.raises(errors.UnreadableImage, match="nothing was read for"):
            await warm.warm(config.load(site.config, {}), str(path), warm.Request(all=True))
    finally:
        may_end.set()


def recorded(site: cli.Site, path: Path) -> working_set.WorkingSet:
    with image.opened(path) as opened:
        found = working_sets.read(site.state, opened.block.uuid)
    assert found is not None
    return found


def wanted(path: Path, known: working_set.WorkingSet) -> list[bool]:
    """Return which pages of main memory, as the file has it, are of the working set and not zero.

    The image's own bitmaps say what is zero: bit n is of page n.
    """
    with image.opened(path) as opened:
        (block,) = opened.validate().stream.blocks
        used = os.pread(opened.fd, block.bitmap_bytes, block.bitmap_offset)
    return [
        bool(touched and used[page // 8] >> page % 8 & 1)
        for page, touched in enumerate(known.blocks[block.name])
    ]


def stored_bytes(site: cli.Site) -> int:
    """Return how much of its RAM the image has in its file, gaps that were filled included."""
    found = site.run("inspect", "it", "--json", check=0).json()
    return int(found["data_bytes"]) + int(found["filled_bytes"])


def in_cache(path: Path) -> list[bool]:
    with image.opened(path) as opened:
        (block,) = opened.validate().stream.blocks
    return cache.resident(path, block.pages_offset, block.end)


def test_learned_and_read_ahead(site: cli.Site, path: Path, tmp_path: Path) -> None:
    need.skip_if(cache.unavailable(path))
    with restored(site, "--warm", "working-set") as done:
        assert done["warm"]["why_not"] == "no working set is recorded"
        touch(site, 3 * MIB, MIB, tmp_path)
        learned = site.run("warm", "it", "--learn", "--json", check=0).json()
        assert learned["learned_from"] == [{"guest": "web", "pid": done["pid"]}]
    known = recorded(site, path)
    (bits,) = known.blocks.values()
    assert bits[3 * MIB // PAGE : 4 * MIB // PAGE].all()
    # The emulator looks at a few pages of its own, and the kernel maps 16 pages around one.
    assert learned["working_set_bytes"] == known.total_bytes < 2 * MIB
    shown = site.run("inspect", "it", "--json", check=0).json()["working_set"]
    assert (shown["bytes"], shown["by"]) == (known.total_bytes, "learn")
    expected = wanted(path, known)

    def is_just_that() -> bool:
        cache.evict(path)
        warm = site.run("warm", "it", "--json", check=0).json()["warm"]
        assert warm["why_not"] is None
        assert warm["bytes"] == warm["of_bytes"] == sum(expected) * PAGE
        return in_cache(path) == expected

    wait.until(is_just_that, what="just the working set in the page cache")

    def is_at_least_that() -> bool:
        cache.evict(path)
        with restored(site) as again:
            assert again["warm"]["bytes"] == sum(expected) * PAGE
            there = in_cache(path)
        return all(found for found, asked in zip(there, expected, strict=True) if asked)

    wait.until(is_at_least_that, what="the working set in the page cache")
    with restored(site, "--warm", "none") as again:
        assert again["warm"] is None
    with restored(site, "--warm", "all") as again:
        assert again["warm"]["bytes"] == again["warm"]["of_bytes"] == stored_bytes(site)


def test_a_save_records_it(site: cli.Site, path: Path, tmp_path: Path) -> None:
    """Of both images, and not what QEMU itself reads for the save."""
    with image.opened(path) as opened:
        file = working_sets.path(site.state, str(opened.block.uuid))
    save = ("save", "web", "--then", "resume", "-o")
    with restored(site, "--run"):
        touch(site, 3 * MIB, MIB, tmp_path)
        site.run(*save, "second", check=0)
        (first,) = recorded(site, path).blocks.values()
        assert first[3 * MIB // PAGE : 4 * MIB // PAGE].all()
        assert first.count() < 2 * MIB // PAGE
        (second,) = recorded(site, site.images / "second").blocks.values()
        assert second == first
        # All of it was read by now: what was known and what the guest has changed counts.
        site.run(*save, "third", check=0)
        (third,) = recorded(site, site.images / "third").blocks.values()
        assert third == first
    assert file.exists()
    site.run("discard", "it", check=0)
    assert not file.exists()


def test_what_is_learned_outlasts_a_save(site: cli.Site, path: Path) -> None:
    with restored(site):
        site.run("warm", "it", "--learn", check=0)
        learned = recorded(site, path)
        site.run("save", "web", "-o", "second", check=0)
    assert recorded(site, path) == learned
    assert recorded(site, site.images / "second").by == "save"


def test_nothing_to_learn_or_to_read(site: cli.Site, path: Path) -> None:
    learned = site.run("warm", "it", "--learn", "--json", check=3).error("check.refused")
    assert "no guest lives on" in learned["message"]
    nothing = site.run("warm", "it", "--json", check=3).error("check.refused")
    assert "--learn" in nothing["hint"]
    site.run("warm", "it", "--learn", "--all", check=2)
    done = site.run("warm", "it", "--all", "--json", check=0).json()
    assert done["working_set_bytes"] is None
    assert done["warm"]["bytes"] == stored_bytes(site)
    slow = site.run("warm", "it", "--all", "--rate", "1K", "--timeout", "100ms", "--json", check=0)
    assert slow.json()["warm"]["why_not"] == "time was up"
